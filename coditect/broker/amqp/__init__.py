"""RabbitMQ through aiormq: the adapter of the broker port.

`link` keeps a connection standing, `publisher` publishes with confirms, `inlet` consumes, `settle` gathers
acknowledgements, `declare` makes the topology, `faults` turns the library's errors into ours.
"""

from coditect.broker.amqp.broker import AmqpBroker

__all__ = ["AmqpBroker"]
