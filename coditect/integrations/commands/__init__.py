"""Command agents: any program that reads a task and gives a result is an agent.

::

    schema        the file of command agents, field by field
    launcher      a process that starts commands, and ends each with all that it started
    running       one command in a folder or git worktree of its own: input, bounded output, end
    loading       the `Agent` of a file of commands, with each command's environment and value

The package imports `agent` and the layers below it; `coditect agent run` and tests call it.
"""
