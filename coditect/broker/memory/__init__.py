"""An in-memory twin of the broker: the behavior of RabbitMQ 3.10 that Coditect relies on, in one event loop.

`MemoryServer` is the broker, `MemoryBroker` one process's connection to it. Time is the event loop's, so a loop with a
virtual clock drives time-outs, delays and expiry. Both adapters pass `tests/contract/broker`.

`exchanges` routes, `queue` stores and delivers, `dead_letter` writes the history of a dead letter, `table` converts a
header table as the wire does, `server` puts them together and injects faults, `connection` is a process's connection,
`consumer` and `broker` implement the port.
"""

from coditect.broker.memory.broker import MemoryBroker
from coditect.broker.memory.server import MemoryServer

__all__ = ["MemoryBroker", "MemoryServer"]
