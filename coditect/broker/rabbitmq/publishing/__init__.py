"""Publishing with confirms: a limit of unconfirmed messages, retries, own channels for keys that get no confirms."""
