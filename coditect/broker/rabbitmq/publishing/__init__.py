"""Publishing with confirms: a limit of unconfirmed messages, retries, and own channels for keys without confirms."""
