"""Publishing with confirms: a limit of unconfirmed messages, retries, and a channel for each key without confirms."""
