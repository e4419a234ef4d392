"""An agent process: what it declares, and how a delivery becomes a settled task.

::

    declaration   Agent, @capability              what a user writes
    typed         types → validation and schemas
    feed, slots   consume: who may start next, how much is in hand
    execute       run the handler within its limits (loop, thread or process)
    settle        retry, dead letter, reply; then acknowledge
    runtime       the three together
    context       what a handler may ask for
    mail          cancel, ping, drain, broadcasts
    presence      heartbeat to the registry
    program       puts a process together
    processes     --processes N
"""
