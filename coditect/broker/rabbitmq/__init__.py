"""RabbitMQ through aiormq: the adapter of the broker port.

`link` keeps a connection standing, `publisher` publishes with confirms, `inlet` consumes, `settle` gathers
acknowledgements, `declare` makes the topology, `faults` turns the library's errors into ours.
"""

import logging

from coditect.broker.rabbitmq.broker import AmqpBroker

# Where nobody set up logging, Python prints warnings to stderr: the libraries' tracebacks of lost connections, too.
for _library in ("aiormq", "pamqp"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

__all__ = ["AmqpBroker"]
