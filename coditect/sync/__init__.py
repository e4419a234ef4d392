"""The blocking client, for callers without an event loop: scripts, notebooks and threads.

The package imports `client`, and runs the event loop of a client in a thread of its own.
"""
