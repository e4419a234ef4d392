"""Message patterns over the broker: request and reply, streamed results, and streams of events.

Client, agent and operations call this package; it imports `broker`, `wire`, `model` and `aio`.
"""
