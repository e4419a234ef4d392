"""The `SyncClient`: the blocking client for callers without an event loop."""

from __future__ import annotations

from coditect.client.client import Client
from coditect.sync.blocking import (
    SyncContext,
    SyncEvents,
    SyncHandle,
    SyncLock,
    SyncRun,
    SyncSharedState,
    handing_many,
    iterating,
    making,
    naming,
    waiting,
)
from coditect.sync.collaboration import SyncHandoffs, SyncThreads
from coditect.sync.schedules import SyncSchedules
from coditect.sync.triggers import SyncTriggers


class SyncClient(SyncContext[Client]):
    """The blocking client for code without an event loop: scripts, notebooks, threads; made by `Client.sync`.

    `with` opens and closes the client; in a notebook, `open()` and `close()` do. Threads may share a client. Each call
    waits; Ctrl-C ends the wait at once, and the client stays usable. A coroutine must not call the client: a waiting
    call blocks the coroutine's event loop. Every method raises the errors of its counterpart in `Client`.

    Raises:
        SetupError: by a method that needs the thread, before `open`, after `close`, and after a fork.
    """

    @property
    def name(self) -> str:
        """The client's name, which its reply queue and its events carry."""
        return self._inner.name

    @property
    def schedules(self) -> SyncSchedules:
        """The schedules that the control plane keeps: `client.schedules.create(...)`, `list()`, `pause(name)`, ..."""
        return SyncSchedules(self._inner.schedules, self._thread)

    @property
    def triggers(self) -> SyncTriggers:
        """The triggers that the control plane keeps: `client.triggers.create(...)`, `list()`, `pause(name)`, ..."""
        return SyncTriggers(self._inner.triggers, self._thread)

    @property
    def threads(self) -> SyncThreads:
        """The discussion threads that the control plane keeps: `client.threads.open(...)`, `get(id)`, `list()`."""
        return SyncThreads(self._inner.threads, self._thread)

    @property
    def handoffs(self) -> SyncHandoffs:
        """The handoffs of running tasks: `client.handoffs.list()`, `show(id)`, `withdraw(id)`."""
        return SyncHandoffs(self._inner.handoffs, self._thread)

    submit = making(Client.submit, SyncHandle)
    submit_many = handing_many(Client.submit_many)
    submit_durable = making(Client.submit_durable, SyncHandle)
    task = naming(Client.task, SyncHandle)
    request = waiting(Client.request)
    cancel = waiting(Client.cancel)
    start = making(Client.start, SyncRun)
    run = naming(Client.run, SyncRun)
    agents = waiting(Client.agents)
    runs = iterating(Client.runs)
    approvals = iterating(Client.approvals)
    decision = waiting(Client.decision)
    audit = iterating(Client.audit)
    autonomy = waiting(Client.autonomy)
    page = waiting(Client.page)
    breakers = iterating(Client.breakers)
    open_breaker = waiting(Client.open_breaker)
    reset_breaker = waiting(Client.reset_breaker)
    dead_nodes = iterating(Client.dead_nodes)
    broadcast = waiting(Client.broadcast)
    emit = waiting(Client.emit)
    events = naming(Client.events, SyncEvents)
    lock = naming(Client.lock, SyncLock)
    elect = naming(Client.elect, SyncLock)
    locks = iterating(Client.locks)
    release_locks = waiting(Client.release_locks)
    space = naming(Client.space, SyncSharedState)
