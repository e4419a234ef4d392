"""What an operator does: list and redrive dead letters, find a task, say why it waits, rebuild, see the status.

Use cases without a face: the command line calls them, and an HTTP API can. They import the client and what is below.
"""
