"""The agents that the monitor knows, each with the time until which it surely counts as living.

An agent lives at least as long as the lease that was last seen of it, even if the registry changes meanwhile: a
wiped registry lists no agent, and all are back with the next heartbeat, long before a lease ends. Time in which the
observer did not look does not count: a first look, or one after a pause, grants every agent a full lease.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus

PAUSE_SECONDS = 1.5
"""The seconds between two looks at the registry from which the monitor counts as having paused."""
EARLY_SECONDS = 1.5
"""The seconds before the end of its lease at which an agent is pinged that has not renewed the lease."""
GONE_SECONDS = 3_600.0
"""The seconds for which a dead agent is remembered, so that its return is noticed."""
MOST_GONE = 10_000


@dataclass(slots=True)
class RosterEntry:
    """An agent that the monitor knows, with the end of its lease."""

    agent: AgentId
    lapses_at: float
    """The time until which the agent counts as living, even if it is silent."""
    lease_seconds: float
    """The longest lease in seconds that the agent was seen to have."""
    draining: bool = False
    examined: bool = False
    """Whether an examination of the agent is under way."""
    without_mail: bool = False
    """Whether the agent's mailbox queue has been found missing once."""

    @property
    def overdue_at(self) -> float:
        """The instant by which the agent should have renewed its lease."""
        return self.lapses_at - min(EARLY_SECONDS, self.lease_seconds / 2)

    def grant(self, now: float) -> None:
        """Count an agent as living for another lease time."""
        self.lapses_at = max(self.lapses_at, now + self.lease_seconds)


class Roster:
    """The agents that the dispatcher's monitor knows, and which of them are overdue; seconds on a clock never set."""

    def __init__(self) -> None:
        self._entries: dict[AgentId, RosterEntry] = {}
        self._gone: dict[AgentId, float] = {}
        self._looked_at: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, records: Iterable[AgentRecord], now: float) -> list[AgentId]:
        """Record all agents that the registry lists now, and return those that were gone and are back."""
        back = [record.agent_id for record in records if self.note_one(record, now)]
        if self._looked_at is None or now - self._looked_at > PAUSE_SECONDS:
            for entry in self._entries.values():
                entry.grant(now)
        self._looked_at = now
        self._gone = {agent: at for agent, at in self._gone.items() if now - at < GONE_SECONDS}
        return back

    def note_one(self, record: AgentRecord, now: float) -> bool:
        """Record one agent that the registry lists; return True when the agent was gone and is back."""
        if record.lease_ms <= 0:
            return False
        left = record.lease_ms / 1_000
        entry = self._entries.setdefault(record.agent_id, RosterEntry(record.agent_id, now + left, left))
        entry.lapses_at = max(entry.lapses_at, now + left)
        entry.lease_seconds = max(entry.lease_seconds, left)
        entry.draining = record.load.status is AgentStatus.DRAINING
        entry.without_mail = False
        return self._gone.pop(record.agent_id, None) is not None

    def overdue(self, now: float) -> list[RosterEntry]:
        """Return the agents that should have renewed their leases and did not, and are not being examined yet."""
        return [entry for entry in self._entries.values() if entry.overdue_at <= now and not entry.examined]

    def strike(self, agent: AgentId, now: float) -> None:
        """Record that an agent is gone."""
        self._entries.pop(agent, None)
        self._gone[agent] = now
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
