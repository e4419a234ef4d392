"""Answers where a task is and why no agent takes it, from registry, queues and agents."""
