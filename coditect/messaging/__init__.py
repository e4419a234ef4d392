"""Message patterns over the broker's port: request and reply, and streams of events.

Client, agent and operations call this package; it imports `broker`, `wire`, `model` and `aio`.
"""
