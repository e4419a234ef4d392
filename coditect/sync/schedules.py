"""The blocking counterpart of a client's schedules."""

from __future__ import annotations

from coditect.client.coordination.schedules import Schedules
from coditect.sync.blocking import Blocking, iterating, waiting


class SyncSchedules(Blocking[Schedules]):
    """The schedules that the control plane keeps, for code without an event loop; see `SyncClient.schedules`."""

    create = waiting(Schedules.create)
    list = iterating(Schedules.list)
    show = waiting(Schedules.show)
    pause = waiting(Schedules.pause)
    resume = waiting(Schedules.resume)
    run = waiting(Schedules.run)
    delete = waiting(Schedules.delete)
