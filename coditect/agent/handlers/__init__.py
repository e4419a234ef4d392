"""What a handler is given: its context, its dependencies, and the lifespan value that lives as long as the agent.

`signature` reads a handler's parameters once, `dependencies` and `lifespan` make the values, `context` offers the task
and what a handler may ask. `declaration`, `execution` and the worker processes call this package.
"""
