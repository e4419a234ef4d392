"""Publishing with confirms: a window of unconfirmed messages, repetitions, and a channel of its own for a stuck key."""
