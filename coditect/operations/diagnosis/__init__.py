"""The use cases that tell where a task is, and why no agent takes it, from the registry, the queues and the agents."""
