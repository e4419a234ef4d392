"""The list of known agents, with the time until which each agent surely counts as living; no I/O, no clock.

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
"""The time before the end of an agent's lease at which the monitor pings an agent that has not renewed it."""
SUSPECT_SECONDS = 3.0
"""The lease that is granted to an agent that may have died while no dispatcher watched."""
GONE_SECONDS = 3_600.0
"""The time for which a dead agent's id is kept, so that the agent's return is noticed."""
MOST_GONE = 10_000


@dataclass(slots=True)
class RosterEntry:
    """The known facts about one living agent, such as the end of its lease."""

    agent: AgentId
    lapses_at: float
    """The time until which the agent counts as living, even if it is silent."""
    lease_seconds: float
    """The longest remaining lease that the registry has shown for the agent."""
    draining: bool = False
    examined: bool = False
    """Whether the monitor is pinging the agent to find out if it lives."""
    without_mail: bool = False
    """Whether the agent's mailbox queue has been found missing once."""
    listed: bool = True
    """Whether the registry has listed the agent since this dispatcher began; else it may be no agent at all."""

    @property
    def overdue_at(self) -> float:
        """The time by which the agent should have renewed its lease, shortly before the lease ends."""
        return self.lapses_at - min(EARLY_SECONDS, self.lease_seconds / 2)

    def grant(self, now: float) -> None:
        """Count the agent as living for one lease time from now."""
        self.lapses_at = max(self.lapses_at, now + self.lease_seconds)


class Roster:
    """The agents that a monitor knows, with the ends of their leases in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._entries: dict[AgentId, RosterEntry] = {}
        self._gone: dict[AgentId, float] = {}
        self._looked_at: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, records: Iterable[AgentRecord], now: float) -> list[AgentId]:
        """Record the agents that the registry lists, and return the ids of dead ones that are back.

        At the first call, and after a pause in the calls, all known agents count as living for a full lease.
        """
        back = [record.agent_id for record in records if self.note_one(record, now)]
        if self._looked_at is None or now - self._looked_at > PAUSE_SECONDS:
            for entry in self._entries.values():
                entry.grant(now)
        self._looked_at = now
        self._gone = {agent: at for agent, at in self._gone.items() if now - at < GONE_SECONDS}
        return back

    def note_one(self, record: AgentRecord, now: float) -> bool:
        """Record one agent's lease from the registry; tell whether the agent counted as dead and is back."""
        if record.lease_ms <= 0:
            return False
        left = record.lease_ms / 1_000
        entry = self._entries.setdefault(record.agent_id, RosterEntry(record.agent_id, now + left, left))
        entry.lapses_at = max(entry.lapses_at, now + left)
        entry.lease_seconds = max(entry.lease_seconds, left) if entry.listed else left
        entry.draining = record.load.status is AgentStatus.DRAINING
        entry.without_mail, entry.listed = False, True
        return self._gone.pop(record.agent_id, None) is not None

    def suspect(self, names: Iterable[str], now: float) -> None:
        """Add unknown agents that left queues, locks or tasks behind, with a short lease: they may have died unseen."""
        for agent in map(AgentId, sorted(names)):
            if agent not in self._entries and agent not in self._gone:
                lapses_at = now + SUSPECT_SECONDS
                self._entries[agent] = RosterEntry(agent, lapses_at, SUSPECT_SECONDS, listed=False)

    def is_gone(self, agent: AgentId) -> bool:
        """Tell whether an agent counts as dead, which it does for an hour unless it comes back."""
        return agent in self._gone

    def forget(self, agent: AgentId) -> None:
        """Stop watching the given name, because it seems to belong to no agent."""
        self._entries.pop(agent, None)

    def overdue(self, now: float) -> list[RosterEntry]:
        """Return the entries of agents that should have renewed their leases by now and are not being pinged yet."""
        return [entry for entry in self._entries.values() if entry.overdue_at <= now and not entry.examined]

    def strike(self, agent: AgentId, now: float) -> None:
        """Move an agent from the living to the dead agents."""
        self._entries.pop(agent, None)
        self._gone[agent] = now
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
