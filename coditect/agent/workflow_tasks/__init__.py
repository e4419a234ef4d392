"""Workflow tasks on the agent's side: asking their shard for a grant, reporting that they run, and how they end."""
