"""The blocking counterpart of a client's triggers."""

from __future__ import annotations

from coditect.client.coordination.triggers import Triggers
from coditect.sync.blocking import Blocking, iterating, waiting


class SyncTriggers(Blocking[Triggers]):
    """The triggers that the control plane keeps, for code without an event loop; see `SyncClient.triggers`."""

    create = waiting(Triggers.create)
    list = iterating(Triggers.list)
    pause = waiting(Triggers.pause)
    resume = waiting(Triggers.resume)
    delete = waiting(Triggers.delete)
    add, remove = create, delete
