"""The part of a handler's context that hands the running task off to another agent."""

from __future__ import annotations

from typing import Any

from coditect.agent.handlers.port import Services
from coditect.codec import encode_any
from coditect.collaboration.handoffs import HandoffRow
from coditect.model import arguments
from coditect.model.duration import Duration, seconds
from coditect.wire.json import loads

LONGEST_TEXT_BYTES = 1_000
TIMEOUT: Duration = "1m"


async def request_handoff(services: Services, to: str, reason: str, context: Any, timeout: Duration) -> HandoffRow:
    """Offer the running task to other agents, and return the handoff if it failed; see `TaskHandoffs.hand_off`."""
    named = arguments.text("to", to, shortest=1, longest=200)
    told = arguments.text("reason", reason, longest=LONGEST_TEXT_BYTES)
    passed, limit = loads(encode_any(context)), seconds(arguments.span("timeout", timeout))
    return HandoffRow.of(await services.hand_off(named, reason=told, context=passed, timeout_seconds=limit))


async def received_handoff(services: Services) -> HandoffRow | None:
    """Return the handoff that brought the running task to this agent; None when there was none."""
    found = await services.received_handoff()
    return None if found["handoff"] is None else HandoffRow.of(found)


class TaskHandoffs:
    """The handoffs of one task, for a handler on the event loop."""

    services: Services

    async def hand_off(
        self, to: str, *, reason: str = "", context: Any = None, timeout: Duration = TIMEOUT
    ) -> HandoffRow:
        """Offer the task to an agent or a capability's agents; wait without a slot; an acceptance ends this execution.

        The agents are asked one after the other, those with the most free slots first. Until one accepts, the task is
        this handler's. When one accepts, the task, the locks that it holds and the context are that agent's in one
        step: this call does not return, and the execution is canceled. Otherwise returns a `HandoffRow`, whose `state`,
        `why` and `reasons` say why the task stays here.

        Raises:
            InputError: when the task is direct, was handed off eight times, or is another attempt's by now.
            TooLarge: when the context is over 64,000 bytes.
            RegistryUnavailable: when the agents to ask cannot be found; retryable.
            ControlPlaneRequired: when no dispatcher answers.
        """
        return await request_handoff(self.services, to, reason, context, timeout)

    async def handoff(self) -> HandoffRow | None:
        """Return the handoff by which the task came to this agent, with its reason and context; None without one.

        Raises:
            ControlPlaneRequired: when no dispatcher answers.
        """
        return await received_handoff(self.services)


class PlainHandoffs:
    """The handoffs of one task, for a plain handler: each method blocks until it has an answer."""

    services: Services

    def hand_off(self, to: str, *, reason: str = "", context: Any = None, timeout: Duration = TIMEOUT) -> HandoffRow:
        """Offer the task to an agent, or a capability's agents, as `Context.hand_off` does; wait for the handoff's end.

        Raises:
            TaskCanceled: when an agent has accepted: the handler should return.
        """
        return self.services.run(request_handoff(self.services, to, reason, context, timeout))

    def handoff(self) -> HandoffRow | None:
        """Return the handoff by which the task came to this agent, with its reason and context; None without one."""
        return self.services.run(received_handoff(self.services))
