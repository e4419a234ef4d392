"""Nodes of a workflow: claimed, attempted, finished, tried again, and what follows from each."""
