"""Where an agent or a result is reached: the agent that a task is pinned to, and the queues that may get replies."""
