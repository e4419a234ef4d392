"""The client: programs submit tasks and start workflows through it, and hold handles of them afterwards.

The package imports `messaging`, `registry`, `broker`, `wire` and `workflow`; the command line, `sync` and `testing`
call it.
"""
