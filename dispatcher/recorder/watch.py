"""The environment variables that make a dispatcher record a history or inject faults; by default it does neither.

=====================  ==========================================================================
variable               meaning
=====================  ==========================================================================
CODITECT_HISTORY       the folder in which the process writes its history
CODITECT_CHAOS_NAME    the name of the process there
CODITECT_FAILPOINTS    the points of `ports.POINTS` at which the process ends, stops or fails
=====================  ==========================================================================

Without any of them a dispatcher has its ports unwrapped: a disabled watch costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from coditect.aio.failpoints import VARIABLE as FAILPOINTS_VARIABLE
from coditect.aio.failpoints import Failpoints, read_orders
from coditect.broker.port import Broker
from dispatcher.recorder.history import HISTORY_VARIABLE, NAME_VARIABLE, SUFFIX, Note, Scribe, silent
from dispatcher.recorder.ports import POINTS, RecordedBroker, RecordedDatabase, RecordedGraph, nowhere
from dispatcher.store.port import Database
from dispatcher.taskgraph.port import TaskGraph


@dataclass(frozen=True, slots=True)
class Watch:
    """The functions that a dispatcher calls to record history and at each failpoint; by default both do nothing."""

    note: Note = silent
    reached: Callable[[str], None] = nowhere

    @property
    def _off(self) -> bool:
        return self.note is silent and self.reached is nowhere

    def broker(self, broker: Broker) -> Broker:
        """Return the broker, wrapped in a `RecordedBroker` if a history is recorded or a failpoint is set."""
        if self._off:
            return broker
        return cast(Broker, RecordedBroker(broker, self.note, reached=self.reached))

    def database(self, database: Database) -> Database:
        """Return the store, wrapped in a `RecordedDatabase` if a history is recorded or a failpoint is set."""
        return database if self._off else RecordedDatabase(database, self.note, reached=self.reached)

    def graph(self, graph: TaskGraph) -> TaskGraph:
        """Return the task graph, wrapped in a `RecordedGraph` if a history is recorded or a failpoint is set."""
        return graph if self._off else cast(TaskGraph, RecordedGraph(graph, reached=self.reached))


def read_watch(environment: Mapping[str, str]) -> Watch:
    """Return a `Watch` with the history file and failpoints that environment variables name; open the file, if any.

    Raises:
        SetupError: when there is no such failpoint.
    """
    orders = read_orders(environment.get(FAILPOINTS_VARIABLE, ""), POINTS)
    note = silent
    if folder := environment.get(HISTORY_VARIABLE):
        name = environment.get(NAME_VARIABLE, "dispatcher")
        note = Scribe(Path(folder) / f"{name}{SUFFIX}", f"{name}#{os.getpid()}").note
    return Watch(note, Failpoints(orders).reached if orders else nowhere)
