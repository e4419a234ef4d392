"""The filter of the events that a listener gets: by kinds, tasks, workflows, capabilities and agents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from coditect.model.event import Event

AGENTS = "/agents/"
"""The prefix of the source of an event that an agent published."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """A filter of events: an event passes if it matches some value of each field that is not empty."""

    kinds: frozenset[str] = frozenset()
    """Types of events, or their first words: `task.completed`, or `task` for all events of tasks."""
    tasks: frozenset[str] = frozenset()
    workflows: frozenset[str] = frozenset()
    """Ids of workflows, for their own events, those of their nodes and those of their tasks."""
    capabilities: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()
    """Ids of agents, for their own events and those of the tasks and nodes that they execute."""

    @classmethod
    def of(
        cls,
        *,
        kind: Iterable[str] = (),
        task: Iterable[str] = (),
        workflow: Iterable[str] = (),
        capability: Iterable[str] = (),
        agent: Iterable[str] = (),
    ) -> Self:
        """Return the filter for the given values; the kind `task` or `task.*` means all event types of tasks.

        A kind is an event type or its first words, and may end in `.*`.
        """
        kinds = frozenset(one.removesuffix(".*").removesuffix(".#") for one in kind) - {"*", "#"}
        return cls(kinds, frozenset(task), frozenset(workflow), frozenset(capability), frozenset(agent))

    def takes(self, event: Event) -> bool:
        """Tell whether an event passes the filter."""
        return (
            (not self.kinds or not self.kinds.isdisjoint(_kinds(event.type)))
            and (not self.tasks or not self.tasks.isdisjoint(_tasks(event)))
            and (not self.workflows or event.subject.partition(":")[0] in self.workflows)
            and (not self.capabilities or event.data.get("capability") in self.capabilities)
            and (not self.agents or not self.agents.isdisjoint(_agents(event)))
        )


def _kinds(type_: str) -> Iterable[str]:
    """Yield the type of an event and its beginnings: `a.b.c`, `a.b`, `a`."""
    while type_:
        yield type_
        type_ = type_.rpartition(".")[0]


def _tasks(event: Event) -> tuple[str, ...]:
    node = event.data.get("node")
    return (event.subject,) if node is None else (event.subject, f"{event.subject}:{node}")


def _agents(event: Event) -> Iterable[str]:
    source = event.source.removeprefix(AGENTS) if event.source.startswith(AGENTS) else ""
    own = event.subject if event.type.startswith("agent.") else ""
    return filter(None, (str(event.data.get("agent") or ""), source, own))
