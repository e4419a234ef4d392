"""The blocking counterparts of a client's threads and handoffs."""

from __future__ import annotations

from coditect.client.coordination.handoffs import KeptHandoffs
from coditect.client.coordination.threads import Threads
from coditect.collaboration.threads import Thread
from coditect.sync.blocking import Blocking, iterating, making, naming, waiting


class SyncThread(Blocking[Thread]):
    """A discussion thread as one participant uses it, for code without an event loop; see `SyncClient.threads`."""

    @property
    def id(self) -> str:
        """The id of the thread."""
        return self._inner.id

    say = waiting(Thread.say)
    history = iterating(Thread.history)
    message = waiting(Thread.message)
    listen = iterating(Thread.listen)
    ask = waiting(Thread.ask)
    answer = waiting(Thread.answer)
    show = waiting(Thread.show)
    read = waiting(Thread.read)
    close = waiting(Thread.close)


class SyncThreads(Blocking[Threads]):
    """The discussion threads that the control plane keeps, for code without an event loop; see `SyncClient.threads`."""

    open = making(Threads.open, SyncThread)
    get = naming(Threads.get, SyncThread)
    list = iterating(Threads.list)


class SyncHandoffs(Blocking[KeptHandoffs]):
    """The handoffs of running tasks, for code without an event loop; see `SyncClient.handoffs`."""

    list = iterating(KeptHandoffs.list)
    show = waiting(KeptHandoffs.show)
    withdraw = waiting(KeptHandoffs.withdraw)
