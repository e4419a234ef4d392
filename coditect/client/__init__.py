"""What a program calls that submits tasks and starts workflows, and what it holds of them afterwards.

It imports `messaging`, `registry`, `broker`, `wire` and `workflow`; the command line, `sync` and `testing` call it.
"""
