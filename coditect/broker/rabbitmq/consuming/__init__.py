"""The consuming of queues: consumers that are restored after a loss, and the watch for deaf consumers."""
