"""Command agents: any program that reads a task and gives a result is an agent.

::

    schema        the file of command agents, field by field
    template      arguments with fields of the input, which cannot be injected into
    workspace     a folder or git worktree for each attempt, removed at its end
    surroundings  the environment of a command, by an allow-list
    launcher      a process that starts commands, and ends each with all that it started
    launching     the agent's side of the launcher
    running       one command: input, bounded output, end
    outcome       the value of a command, or the error of its attempt
    declaration   the `Agent` of a file of commands
    loading       that file, read and checked
    program       `coditect agent run` of command agents

The package imports `agent` and the layers below it; `coditect agent run` and tests call it.
"""
