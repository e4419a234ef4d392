"""The life of one node: claimed, attempted, finished, tried again, and the consequences of each step."""
