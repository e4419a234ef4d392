"""Message patterns over the broker: request and reply, streamed results, events, and requests to the control plane.

Client, agent and operations call this package; it imports `broker`, `wire`, `model` and `aio`.
"""
