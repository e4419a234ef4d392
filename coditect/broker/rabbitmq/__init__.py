"""The RabbitMQ implementation of the interface `Broker`, through the library aiormq.

`connection` keeps a connection open, `publisher` publishes with confirms, `consumer` consumes, `settlements` gathers
acknowledgements, `declare` makes the topology, `errors` turns the library's errors into Coditect's.
"""

import logging

from coditect.broker.rabbitmq.broker import AmqpBroker

# Where nobody set up logging, Python prints warnings to stderr: the libraries' tracebacks of lost connections, too.
for _library in ("aiormq", "pamqp"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

__all__ = ["AmqpBroker"]
