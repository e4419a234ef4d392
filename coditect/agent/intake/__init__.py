"""The intake of an agent: decides how many deliveries of each queue the agent holds, and which task starts next.

The agent's runtime calls the package, which imports the broker's port, `aio` and `model`.
"""
