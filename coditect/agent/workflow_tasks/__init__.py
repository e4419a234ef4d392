"""Workflow tasks on the agent's side: the request for a grant, reports while they run, and their results."""
