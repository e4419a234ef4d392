"""The agent process: how a user declares an agent, and how a delivered task is run and settled.

::

    declaration     Agent, @capability: what a user writes, and how it is found in a file
    signature       what a handler is called with: types, dependencies, lifespan, middleware
    context         what a handler may ask of its task (services, workspaces); batch: handlers of lists
    admission       which delivery starts a task, and how the others are settled
    intake          which task starts next, and how many deliveries the agent holds of each queue
    guards          rates, breakers and concurrency limits, each of which can hold a task back
    execution       one task runs within its limits, its handler as `handler` says
    pool, worker    handlers in processes; process: several processes of one agent
    managed         tasks that a workflow owns, and what is asked of the owners and told them (owners)
    outcomes        choose retry, dead letter or result
    settlement      publish it, then acknowledge
    runtime         consumes, executes and settles with all of the above
    quarantine      tasks that may have killed their agent, and their isolation in processes of their own
    mailbox         cancel, ping, drain, broadcasts, offers of running tasks
    heartbeat       registration and lease
    program         puts a process together

`coditect agent run` and `TestFleet` start agent processes.
"""
