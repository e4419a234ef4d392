"""Message patterns over the broker's port: request and reply, and streams of events.

Client, agent and operations call it; it imports `broker`, `wire`, `model` and `aio`.
"""
