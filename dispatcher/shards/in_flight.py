"""The published tasks of one shard that have not ended (flights), and the rule by which a flight counts as lost.

No agent works on a lost flight, and the broker gives it to none. The task is published again, under a new publication;
a wrong finding is safe, because the older publication is stale and its results are refused. The rule is drawn in
`docs/control-plane.md`: a flight without reports is searched for, and the occasions only say how soon.

A flight is *alone* when the broker would not deliver it again if its agent lost it: the agent may have acked it early,
or a rebuild on demand doubts that the broker has it. What was published to a broker that lost its data is lost without
a question, and the ledger alone goes over it (`ledger/workflows/republish.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from coditect.model.ids import AgentId
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import Lost
from dispatcher.ledger.effects import Effects, NodeKey, Transition
from dispatcher.ledger.nodes.attempts import HEARTBEAT

SILENT_SECONDS = 60.0
"""The time without a report, in seconds, after which the dispatcher searches for a published task."""
UNTOLD_SECONDS = 3.0
"""The seconds after its publication in which a task may be running before the report of its start arrives.

An agent reports a start within 1.1 s; the remaining time is for the way of the report through its queue.
"""
EARLY_ACK_MS = 600_000
"""The running time of a task in milliseconds from which its agent has acked the delivery and reports every 20 s."""


class Fate(Enum):
    """The judgement about a published task: held by an agent or the broker, to be searched for, or lost."""

    HELD = auto()
    """An agent or the broker has the task, as far as the dispatcher knows."""
    SOUGHT = auto()
    """No report about the task came for so long that the dispatcher must ask the broker and the agent for it."""
    LOST = auto()
    """Neither the broker nor an agent has the task, and the dispatcher must publish it again."""


@dataclass(slots=True)
class Flight:
    """A published node that has not ended, with the agent that runs it and the time of the agent's last report."""

    capability: str
    level: str
    publication: int
    published_ms: int
    """The instant of the publication, in milliseconds since the epoch."""
    fence: int = 0
    agent: str = ""
    """The id of the agent that reported the task's start; empty before such a report."""
    heard: float = 0.0
    """The time of the agent's last report, or the last time when no report could arrive: loop clock, seconds."""
    in_own_queue: bool = False
    """Whether the task went to one agent's own queue instead of the capability's task queue."""
    heartbeat_ms: int = 0
    """The longest time in milliseconds between two reports of the agent, if the node limits it; 0 for no limit."""
    sought: int = 0
    """The last publication number of the task's queue when the search for the task began; 0 without a search."""

    def hear(self, now: float) -> None:
        """Record the time of an agent's report on the task, and end the search for the task, if any."""
        self.heard, self.sought = now, 0


class InFlight:
    """The published tasks of one shard that have not ended, each as a `Flight`, with their number per capability."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._by_key: dict[NodeKey, Flight] = {}
        self.started: dict[tuple[str, str], int] = {}
        """The highest publication number that is known to have started, by capability and level."""
        self.published: dict[tuple[str, str], int] = {}
        """The highest publication number, by capability and level."""
        self.doubted: dict[NodeKey, frozenset[AgentId]] = {}
        """The agents whose attempts other agents took over, by node, until it is known whether these agents live."""
        self._others: dict[NodeKey, int] = {}
        self._doubtful = 0

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[tuple[NodeKey, Flight]]:
        return iter(tuple(self._by_key.items()))

    def get(self, node_key: NodeKey) -> Flight | None:
        """Return the `Flight` of a node's published task; None when the node is not published."""
        return self._by_key.get(node_key)

    def follow_all(self, effects: Effects, now: float) -> None:
        """Update the published tasks after a committed batch, and note which tasks went to one agent's own queue."""
        for moved in effects.transitions:
            self.follow(moved, now)
        for publication in effects.publications:
            if publication.agent:
                self.note_own_queue(publication.node_key)

    def follow(self, moved: Transition, now: float) -> None:
        """Add, change or remove a node's published task after a committed transition of the node."""
        row = moved.row
        if row.doubted or moved.node_key in self.doubted:
            self._doubt(moved.node_key, frozenset(AgentId(agent) for agent, _ in row.doubted))
        if moved.state in (TaskState.PUBLISHED, TaskState.WORKING) and row.publication:
            flight = self._by_key.get(moved.node_key)
            if flight is None:
                self._capacity.begin(moved.capability)
                flight = Flight(moved.capability, moved.level, row.publication, 0)
                self._by_key[moved.node_key] = flight
            if flight.capability != moved.capability:  # an agent of another capability has taken the task over
                self._capacity.end(flight.capability)
                self._capacity.begin(moved.capability)
                flight.capability = moved.capability
            flight.in_own_queue = flight.in_own_queue and flight.publication == row.publication
            flight.publication, flight.published_ms = row.publication, row.published_ms or 0
            flight.fence, flight.agent, flight.heartbeat_ms = row.fence, row.agent, row.heartbeat_ms or 0
            flight.hear(now)
            _raise(self.published, flight)
            if row.agent:
                self._note_start(flight)
        elif (flight := self._by_key.pop(moved.node_key, None)) is not None:
            completed = moved.state is TaskState.COMPLETED
            if completed:
                self._note_start(flight)
            self._capacity.end(flight.capability, completed=completed)

    def _doubt(self, node_key: NodeKey, agents: frozenset[AgentId]) -> None:
        if agents:
            self.doubted[node_key] = agents
        else:
            del self.doubted[node_key]

    def settle(self, node_key: NodeKey, agent: AgentId) -> None:
        """Note that the ledger knows whether an agent lives whose attempt another agent took over."""
        if node_key in self.doubted:
            self._doubt(node_key, self.doubted[node_key] - {agent})

    def note_own_queue(self, node_key: NodeKey) -> None:
        """Note that a node's task went to one agent's queue of follow-up tasks, not to the capability's queue."""
        if (flight := self._by_key.get(node_key)) is not None:
            flight.in_own_queue = True

    def _note_start(self, flight: Flight) -> None:
        if not flight.in_own_queue:
            _raise(self.started, flight)

    def agree(self, found: Sequence[Transition], now: float) -> None:
        """Correct the list of published tasks by the ledger: add or update those that it has, and remove all others."""
        known_keys = {moved.node_key for moved in found}
        for node_key in [key for key in self._by_key if key not in known_keys]:
            self._capacity.end(self._by_key.pop(node_key).capability)
        for moved in found:
            row, flight = moved.row, self._by_key.get(moved.node_key)
            known = None if flight is None else (flight.publication, flight.fence, flight.agent)
            if known != (row.publication, row.fence, row.agent) or row.doubted:
                self.follow(moved, now)

    def hear(self, node_key: NodeKey, fence: int, now: float) -> None:
        """Record the time of a report on the current attempt; keep reports on other attempts for `take_others`."""
        flight = self._by_key.get(node_key)
        if flight is not None and flight.fence == fence:
            flight.hear(now)
        else:
            self._others[node_key] = fence

    def take_others(self) -> dict[NodeKey, int]:
        """Return and forget agents' reports on attempts that are not current: the fence of the attempt, by node.

        The orphan detector has such attempts canceled.
        """
        others, self._others = self._others, {}
        return others

    def grant(self, now: float) -> None:
        """Count each published task as reported now, because agents' reports could not arrive until now."""
        for flight in self._by_key.values():
            flight.hear(now)

    def doubt(self, last: int) -> None:
        """Mark all published tasks with publication numbers up to `last` as perhaps missing in the broker."""
        self._doubtful = max(self._doubtful, last)

    @property
    def agents(self) -> set[AgentId]:
        """The ids of the agents that have begun any of the shard's published tasks."""
        return {AgentId(flight.agent) for flight in self._by_key.values() if flight.agent}

    def in_doubt(self) -> set[AgentId]:
        """Return the agents whose attempts other agents took over, and of which it is not known whether they live."""
        return set[AgentId]().union(*self.doubted.values())

    def fate(self, flight: Flight, now: float, now_ms: int) -> Fate:
        """Judge whether a published task is held, to be searched for, or lost."""
        doubted, silent = flight.publication <= self._doubtful, now - flight.heard
        alone = doubted or now_ms - flight.published_ms > EARLY_ACK_MS
        if flight.agent and flight.heartbeat_ms:
            return Fate.LOST if silent > flight.heartbeat_ms / 1000 else Fate.HELD
        if doubted and not flight.agent and silent >= UNTOLD_SECONDS:
            return Fate.LOST
        if silent <= SILENT_SECONDS:
            return Fate.HELD
        return Fate.LOST if alone and flight.agent else Fate.SOUGHT

    def lost(self, now: float, now_ms: int) -> list[Lost]:
        """Return commands that publish the lost tasks again, one for each, and count these tasks as reported now."""
        lost = [(key, flight) for key, flight in self if self.fate(flight, now, now_ms) is Fate.LOST]
        for _, flight in lost:
            flight.hear(now)
        return [Lost(key, flight.publication, flight.agent, HEARTBEAT) for key, flight in lost]

    def lost_with(self, gone: AgentId, heard_until: float) -> list[Lost]:
        """Return commands that publish again the tasks that a dead agent began and did not report after `heard_until`.

        Its broker may deliver the task again, unless nothing is left to deliver: a grant may have reached the agent
        after another had the delivery. The agent that takes it first wins, and the other publication is stale.
        """
        found = ((key, flight) for key, flight in self if flight.agent == gone and flight.heard <= heard_until)
        return [Lost(key, flight.publication, gone) for key, flight in found]

    def close(self) -> None:
        """Forget all published tasks, because this dispatcher no longer works on the shard."""
        for flight in self._by_key.values():
            self._capacity.end(flight.capability)
        self._by_key.clear()
        self.doubted.clear()


def _raise(highest: dict[tuple[str, str], int], flight: Flight) -> None:
    queue = flight.capability, flight.level
    highest[queue] = max(flight.publication, highest.get(queue, 0))
