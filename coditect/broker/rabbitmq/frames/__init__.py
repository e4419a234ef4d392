"""The direct wire path: Coditect itself, not aiormq, writes and reads the frames of publishes, deliveries and acks.

::

    fields             a message's properties and headers as bytes, and back          pure
    codec              publishes and settlements as frames; a stream cut into frames  pure
    readable           foreign programs' frames in a form that pamqp decodes for aiormq
    stream             one connection's bytes: own frames are taken, the rest goes on to aiormq
    publisher_channel  a channel that publishes: sequence numbers, confirms, returns
    consumer_channel   a channel that consumes: deliveries, settlements
    question           a question without side effect, which tests a silent connection
    path               the factory of these channels

Connection, handshake, topology and everything else that is rare stay with aiormq
(docs/adr/0009-direct-frames.md).
"""
