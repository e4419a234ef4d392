"""The agent process: how a user declares an agent, and how a delivered task is run and settled.

::

    declaration     Agent, @capability: what a user writes
    handlers/       what a handler is given: context, dependencies, lifespan
    intake/         which task starts next, and how many deliveries the agent holds
    execution/      one task runs within its limits
    processes/      handlers in processes, and several processes of one agent
    workflow_tasks/ tasks that a workflow owns
    settlement/     choose retry, dead letter or result, publish it, then acknowledge
    runtime         consumes, executes and settles with all of the above
    quarantine      tasks that may have killed their agent
    handoffs        what it says when another agent offers it a running task
    mailbox         cancel, ping, drain, broadcasts
    heartbeat       registration and lease
    program         puts a process together

`coditect agent run` and `TestFleet` start agent processes. The package imports `messaging`, `registry`, `broker` and
the layers below these.
"""
