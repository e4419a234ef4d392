"""An operator's use cases: dead letters, the location of a task, the reason of its wait, rebuild, and status.

The use cases print nothing: the command line calls them, and an HTTP API can. The package imports the client and the
layers below the client.
"""
