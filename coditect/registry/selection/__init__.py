"""The selection of an agent by the sender of a task: pure strategies and scores, and the client's cache of agents."""
