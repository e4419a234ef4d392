"""Which agents there are, and until when each of them is surely believed to live. No I/O, no clock.

An agent lives at least as long as the lease that was last seen of it, whatever becomes of the registry meanwhile: one
that was wiped lists nobody, and everybody is back with the next heartbeat, long before a lease ends. Time in which
nobody looked counts for nothing: whoever looks for the first time, or again after a pause, grants every agent a
full lease.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus

PAUSE_SECONDS = 1.5
"""Looks further apart than this have a pause between them."""
EARLY_SECONDS = 1.5
"""So long before its lease ends an agent is asked whether it is there, if it did not renew it meanwhile."""
GONE_SECONDS = 3_600.0
"""How long an agent that is gone is remembered, to be greeted when it comes back."""
MOST_GONE = 10_000


@dataclass(slots=True)
class RosterEntry:
    """One agent, as far as it is known."""

    agent: AgentId
    lapses_at: float
    """Until then its silence means nothing."""
    lease_seconds: float
    """The longest that was seen of its lease."""
    draining: bool = False
    examined: bool = False
    """Whether somebody is finding out right now."""
    without_mail: bool = False
    """Whether its mail was missing once already."""

    @property
    def overdue_at(self) -> float:
        """From then on it should have renewed its lease."""
        return self.lapses_at - min(EARLY_SECONDS, self.lease_seconds / 2)

    def grant(self, now: float) -> None:
        """Believes in it for another lease."""
        self.lapses_at = max(self.lapses_at, now + self.lease_seconds)


class Roster:
    """What one observer knows of the fleet. Instants are seconds on any clock that never goes back."""

    def __init__(self) -> None:
        self._entries: dict[AgentId, RosterEntry] = {}
        self._gone: dict[AgentId, float] = {}
        self._looked_at: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, records: Iterable[AgentRecord], now: float) -> list[AgentId]:
        """Takes in everybody whom the registry lists now; gives those who were gone and are back."""
        back = [record.agent_id for record in records if self.note_one(record, now)]
        if self._looked_at is None or now - self._looked_at > PAUSE_SECONDS:
            for entry in self._entries.values():
                entry.grant(now)
        self._looked_at = now
        self._gone = {agent: at for agent, at in self._gone.items() if now - at < GONE_SECONDS}
        return back

    def note_one(self, record: AgentRecord, now: float) -> bool:
        """Takes in one agent that the registry lists; True when it was gone and is back."""
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
        """Who should have been heard of and was not, and is not being examined yet."""
        return [entry for entry in self._entries.values() if entry.overdue_at <= now and not entry.examined]

    def strike(self, agent: AgentId, now: float) -> None:
        """It is gone."""
        self._entries.pop(agent, None)
        self._gone[agent] = now
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
