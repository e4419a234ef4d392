"""The dispatcher of a chaos run: the product's program, whose ports record a history and strike at failpoints.

``python -m chaos.dispatcher [ORDER ...]`` reads the same settings as ``python -m dispatcher``. Each order names one of
`recorder.POINTS`, as in ``commit.after:kill@3``. The history goes into the folder `CHAOS_HISTORY`, if it is set, under
the name `CHAOS_NAME`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from chaos.failpoints import Failpoints, read_orders
from chaos.history import HISTORY_VARIABLE, NAME_VARIABLE, SUFFIX, Note, Scribe, silent
from chaos.recorder import POINTS, Reached, RecordedBroker, RecordedDatabase, RecordedGraph
from coditect.broker.port import Broker
from dispatcher.program import Wrap
from dispatcher.program import main as run_dispatcher
from dispatcher.store.port import Database
from dispatcher.taskgraph.port import TaskGraph


def recording(note: Note, reached: Reached) -> Wrap:
    """Return the function that wraps a dispatcher's ports, so that they record a history and call `reached`."""

    def wrap(broker: Broker, database: Database, graph: TaskGraph) -> tuple[Broker, Database, TaskGraph]:
        return (
            cast(Broker, RecordedBroker(broker, note, reached=reached)),
            RecordedDatabase(database, note, reached=reached),
            cast(TaskGraph, RecordedGraph(graph, reached=reached)),
        )

    return wrap


def open_note(environment: Mapping[str, str]) -> Note:
    """Open the history file that the environment names, and return the function that writes to it, or to nowhere."""
    folder = environment.get(HISTORY_VARIABLE)
    if not folder:
        return silent
    name = environment.get(NAME_VARIABLE, "dispatcher")
    return Scribe(Path(folder) / f"{name}{SUFFIX}", f"{name}#{os.getpid()}").note


def main(orders: Sequence[str]) -> int:
    """Run a dispatcher that carries out the orders at its failpoints; return the process's exit code.

    Raises:
        SetupError: when an order cannot be read, or names no failpoint of a dispatcher.
    """
    failpoints = Failpoints(read_orders(orders, POINTS))
    return run_dispatcher(wrap=recording(open_note(os.environ), failpoints.reached))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
