"""The client, through which a program submits tasks, starts workflows, and follows both by their handles.

The package imports `messaging`, `registry`, `broker`, `wire` and `workflow`; the command line, `sync` and `testing`
call it.
"""
