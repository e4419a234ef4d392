"""The consuming of queues: consumers that are restored after a loss, and a watch for those that receive nothing."""
