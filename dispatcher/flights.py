"""What one shard has under way, in memory: published nodes whose end nobody has told. Made again from the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coditect.model.workflow.states import TaskState
from dispatcher.layers.ledger.effects import Moved, Place
from dispatcher.layers.ledger.rows import NodeRow
from dispatcher.window import Window


@dataclass(slots=True)
class Flight:
    """One publication under way. Instants are milliseconds since the epoch."""

    capability: str
    level: str
    publication: int
    published_ms: int
    fence: int = 0
    agent: str = ""
    heard_ms: int = 0
    """When an agent said last that it runs; 0 for never."""
    heartbeat_ms: int = 0
    """How long the agent may be silent, where the node says so."""


class Flights:
    """The flights of one shard, counted in the dispatcher's window."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._flights: dict[Place, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[tuple[Place, Flight]]:
        return iter(tuple(self._flights.items()))

    def follow(self, moved: Moved, now_ms: int) -> None:
        """Takes in that a node changed its state."""
        row = moved.row
        if moved.state in (TaskState.PUBLISHED, TaskState.WORKING) and row.publication:
            flight = self._flights.get(moved.place)
            if flight is None:
                self._window.begin(moved.capability)
                flight = Flight(moved.capability, moved.level, row.publication, row.published_ms or now_ms)
                self._flights[moved.place] = flight
            flight.publication, flight.published_ms = row.publication, row.published_ms or now_ms
            flight.fence, flight.agent, flight.heartbeat_ms = row.fence, row.agent, row.heartbeat_ms or 0
            flight.level = flight.level or moved.level
            flight.heard_ms = now_ms if moved.state is TaskState.WORKING else 0
        elif (flight := self._flights.pop(moved.place, None)) is not None:
            self._window.end(flight.capability, completed=moved.state is TaskState.COMPLETED)

    def agree(self, found: Sequence[tuple[Place, str, NodeRow]], now_ms: int) -> None:
        """Takes in all that the ledger has under way, by place, capability and row; what it does not have has ended."""
        for place in self._flights.keys() - {place for place, _, _ in found}:
            self._window.end(self._flights.pop(place).capability)
        for place, capability, row in found:
            flight = self._flights.get(place)
            if flight is None or (flight.publication, flight.fence) != (row.publication, row.fence):
                self.follow(Moved(place, row.state, capability, "", row), now_ms)

    def hear(self, place: Place, fence: int, now_ms: int) -> None:
        """Its agent says that it still runs, which is no news for the ledger."""
        flight = self._flights.get(place)
        if flight is not None and flight.heard_ms and flight.fence == fence:
            flight.heard_ms = now_ms

    def close(self) -> None:
        """The shard is another's: nothing of it counts here any more."""
        for flight in self._flights.values():
            self._window.end(flight.capability)
        self._flights.clear()
