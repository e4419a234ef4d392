"""The processes that are measured.

::

    workload         the agents: no-op echo, one that counts, and two that wait
    agent            runs one of them by `coditect.agent.program.run`
    tally            how agents count the tasks whose result nobody wants
    order            what a client is told to measure
    client           carries it out through a driver, timed; prints nothing, writes JSON
    driver           what the client asks of every side, and the task that all are given
    coditect_driver  our side: the public Client
    aio_pika_driver  the other side: publisher
    aio_pika_agent   the other side: consumer and replier
    others           the settings of Celery, Taskiq and RQ
    *_side           each of them: worker and driver
    ready            how a program says that it takes work
"""
