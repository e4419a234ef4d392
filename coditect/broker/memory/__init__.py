"""An in-memory twin of the broker: the behavior of RabbitMQ 3.10 that Coditect relies on, in one event loop.

`MemoryServer` is the broker, `MemoryBroker` one process's connection to it. Time is the event loop's, so a loop with a
virtual clock drives time-outs, delays and expiry. Both adapters pass `tests/contract/broker`.

`queue` stores, delivers and dead-letters; `server` routes, limits headers as the wire does, and injects faults;
`broker` is a process's connection, and implements the port.
"""

from coditect.broker.memory.broker import MemoryBroker
from coditect.broker.memory.server import MemoryServer

__all__ = ["MemoryBroker", "MemoryServer"]
