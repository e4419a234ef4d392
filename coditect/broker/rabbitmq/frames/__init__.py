"""Direct frames: the hot frames of Coditect's own channels, cut and encoded here instead of by the library.

::

    fields             a message's properties and headers as bytes, and back          pure
    codec              publishes and settlements as frames; a stream cut into frames  pure
    readable           frames for aiormq in a form that pamqp decodes, whoever wrote them
    stream             one connection's bytes: own frames are taken, the rest goes on to aiormq
    publisher_channel  a channel that publishes: sequence numbers, confirms, returns
    consumer_channel   a channel that consumes: deliveries, settlements
    question           a question without effect, by which a silent connection is tried
    path               the factory of these channels

Connection, handshake, topology and everything else that is rare stay with aiormq
(docs/adr/0009-direct-frames.md).
"""
