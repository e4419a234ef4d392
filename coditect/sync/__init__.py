"""The client for callers without an event loop: scripts, notebooks and threads.

It imports `client`, and runs an event loop in a thread of its own.
"""
