"""Handoffs: a running task goes from the agent that has it to another one, which has accepted it."""
