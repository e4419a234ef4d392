"""The bridge to agents that speak only HTTP: they register a URL, and get their tasks by POST requests.

::

    registration   what an agent registers, and how it becomes an ordinary `Agent` that posts, waits, judges the answer
    addresses      the hosts to which the bridge may post, and the errors of calls
    messages       the event that is posted, and the answer: at once, or later by a secret address
    calls          one POST within its bounds
    bridge         which HTTP agents are served here, and for how long; the use cases behind the API's routes
    program        puts it together on RabbitMQ and Redis

The bridge runs one `Agent` for each registration, so that queues, leases, retries, breakers and the registry are those
of any agent. The package is part of the extra `api`, and imports `operations`, `agent` and the layers below these.
"""
