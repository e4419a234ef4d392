"""The RabbitMQ implementation of the interface `Broker`, through the library aiormq.

::

    broker             both connections of a process, with all that `Broker` promises
    connection         a connection that is opened again after every loss
    publishing         publishes with confirms, and their repetition
    consuming          consumers, restored after every loss
    declare            exchanges, queues and bindings
    channels           aiormq's channels and errors
    publisher_channel  a channel that publishes: sequence numbers, confirms, returns
    consumer_channel   a channel that consumes: deliveries and their settlements
    stream             one connection's bytes: own frames are taken, the rest goes on to aiormq; a probe of silence
    codec              publishes and settlements as frames; a stream cut into frames
    fields             a message's properties and headers as bytes, and back

Coditect itself writes and reads the frames of publishes, deliveries and acks. Connection, handshake, topology and
everything else that is rare stay with aiormq (docs/adr/0009-direct-frames.md).
"""

import logging

from coditect.broker.rabbitmq.broker import PUBLISH_WINDOW, AmqpBroker

# Where nobody set up logging, Python prints warnings to stderr: the libraries' tracebacks of lost connections, too.
for _library in ("aiormq", "pamqp"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

__all__ = ["PUBLISH_WINDOW", "AmqpBroker"]
