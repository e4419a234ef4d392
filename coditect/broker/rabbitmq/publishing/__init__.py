"""Publishing with confirms: a window of unconfirmed messages, retries, and own channels for stuck keys."""
