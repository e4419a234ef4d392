"""Direct frames: the hot frames of our own channels, cut and encoded here instead of by the library.

::

    fields    a message's properties and headers as bytes, and back         pure
    codec     publishes and settlements as frames; a stream cut into frames  pure
    stream    one connection's bytes: what is ours is taken, the rest passed on to aiormq
    outlet    a channel that publishes: sequence numbers, confirms, returns
    inlet     a channel that consumes: deliveries, settlements

Connection, handshake, topology and everything else that is rare stay with aiormq
(docs/adr/0009-direct-frames.md).
"""
