"""An operator's use cases behind CLI and API: fleet, tasks, workflows, dead letters, topology, load, status.

The use cases print nothing: the command line calls them, and an HTTP API can. A use case takes the ports that it asks,
or, where it opens one only when it needs it, the program's `Connections`. The package imports the client and the layers
below the client.
"""
