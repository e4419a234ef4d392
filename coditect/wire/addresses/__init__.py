"""The addresses of tasks and results: the agent that a task is pinned to, and the queues that may get replies."""
