"""The intake of an agent: how many deliveries it holds, and which task starts next, by queues, consumers and slots.

The agent's runtime calls the package, which imports the broker's port, `aio` and `model`.
"""
