"""The measured processes.

::

    workload         the agents: no-op echo, one that counts, and two that wait
    agent            runs one of them by `coditect.agent.program.run`
    tally            the agents' count of executed tasks that want no result
    order            the instructions for a client
    client           carries an order out through a driver, timed; prints nothing, writes JSON
    driver           the client's interface to every side, and the task that is equal for all
    coditect_driver  our side: the public Client
    aio_pika_driver  the other side: publisher
    aio_pika_agent   the other side: consumer and replier
    others           the settings of Celery, Taskiq and RQ
    *_side           each of them: worker and driver
"""
