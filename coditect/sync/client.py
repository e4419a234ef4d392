"""The client for callers without an event loop."""

from __future__ import annotations

from coditect.client.client import Client
from coditect.sync.blocking import (
    SyncContext,
    SyncEvents,
    SyncHandle,
    SyncRun,
    handing_many,
    iterating,
    making,
    naming,
    waiting,
)


class SyncClient(SyncContext[Client]):
    """The client for code without an event loop: scripts, notebooks, threads. Made by `Client.sync`.

    `with` opens and closes it; in a notebook, `open()` and `close()`. Safe to share between threads. Each call
    waits; Ctrl-C ends the wait at once, and the client stays usable. A coroutine must not call it: it would
    hold up its event loop.

    Raises, beside what the methods of `Client` raise: SetupError before it is open, after it was closed, and
    after a fork.
    """

    @property
    def name(self) -> str:
        """What the fleet knows this client by."""
        return self._inner.name

    submit = making(Client.submit, SyncHandle)
    submit_many = handing_many(Client.submit_many)
    submit_durable = making(Client.submit_durable, SyncHandle)
    task = naming(Client.task, SyncHandle)
    request = waiting(Client.request)
    cancel = waiting(Client.cancel)
    start = making(Client.start, SyncRun)
    run = naming(Client.run, SyncRun)
    runs = iterating(Client.runs)
    approvals = iterating(Client.approvals)
    dead_nodes = iterating(Client.dead_nodes)
    broadcast = waiting(Client.broadcast)
    emit = waiting(Client.emit)
    events = naming(Client.events, SyncEvents)
