"""An agent process: the declaration of an agent, and the way of a delivery to a settled task.

::

    declaration     Agent, @capability: what a user writes
    context         what a handler may ask for
    intake/         who starts next, and how much is in hand
    execution/      one task runs within its limits
    processes/      handlers in processes, and several processes of one agent
    workflow_tasks/ tasks that a workflow owns
    settle          publish what follows, then acknowledge; outcomes says what follows
    runtime         all of that together
    quarantine      tasks that may have killed their agent
    mailbox         cancel, ping, drain, broadcasts
    heartbeat       registration and lease
    program         puts a process together

`coditect agent run` and `TestFleet` start agent processes. The package imports `messaging`, `registry`, `broker` and
the layers below these.
"""
