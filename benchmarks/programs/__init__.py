"""The processes that are measured.

::

    workload         the agents: no-op echo, and a wait
    agent            runs one of them by `coditect.agent.program.run`
    client           bursts and single round trips through a driver, timed; prints nothing, writes JSON
    driver           what the client asks of both sides, and the task that both are given
    coditect_driver  our side: the public Client
    aio_pika_driver  the other side: publisher
    aio_pika_agent   the other side: consumer and replier
"""
