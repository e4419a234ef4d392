"""The rate limits of an agent process: which capabilities wait for tokens, and the fetch of one task for each token.

Where tokens are plenty, the capability's queues are consumed as any, and an execution takes a token as it begins. When
there is none, the agent takes nothing more from the queues; then each token fetches one task, until the queues are
empty. Without an answer of the registry no execution begins: a rate is never exceeded for want of knowledge.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from coditect.agent.declaration import Agent
from coditect.agent.guards.tokens import LeasedTokens
from coditect.agent.intake.intake import Intake
from coditect.agent.intake.queue_consumer import PauseReason
from coditect.agent.intake.slots import Turns
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.registry.port import Registry
from coditect.wire import routing

log = logging.getLogger(__name__)


class AgentRates:
    """The rate-limit tokens of an agent process by capability, and the capabilities that wait for them."""

    def __init__(
        self,
        agent: Agent,
        registry: Registry,
        clock: Clock,
        intake: Intake,
        background: Supervisor,
        *,
        halted: Collection[str],
    ) -> None:
        """Prepare the tokens of the capabilities with a rate; a capability in `halted` waits for a breaker as well."""
        now = asyncio.get_running_loop().time
        self._tokens = {
            one.name: LeasedTokens(one.name, one.spec.rate, registry, now=now)
            for one in agent.capabilities
            if one.spec.rate is not None
        }
        self._clock, self._intake, self._background, self._halted = clock, intake, background, halted
        self._turns = Turns()
        self.waiting: set[str] = set()
        """The capabilities whose tasks wait for tokens in their queues."""

    def told(self) -> tuple[tuple[str, str], ...]:
        """Return each capability whose tasks wait for its rate, with the rate and why there are no tokens, if known.

        The text is for people.
        """
        return tuple((name, self._told(self._tokens[name])) for name in sorted(self.waiting))

    def _told(self, tokens: LeasedTokens) -> str:
        return f"{tokens.rate}, and {tokens.trouble}" if tokens.trouble else str(tokens.rate)

    async def has_token(self, capability: str) -> bool:
        """Tell whether an execution of a capability would get a token now; always True without a rate."""
        if (tokens := self._tokens.get(capability)) is None:
            return True
        if found := await tokens.promise():
            tokens.withdraw()
        return found

    async def take(self, capability: str) -> bool:
        """Take a token for an execution that begins now; if none, return False and pause the capability's queues."""
        tokens = self._tokens[capability]
        if await tokens.take():
            return True
        if capability not in self.waiting and not self._intake.closed:
            self.waiting.add(capability)
            for level in Priority:
                self._intake.pause(routing.task_queue(capability, level), PauseReason.RATE)
            self._background.start(self._feed(tokens), name=f"rate {capability}")
        return False

    async def _feed(self, tokens: LeasedTokens) -> None:
        """Start one task for each token until the capability's queues are empty; then consume these as usual."""
        name = tokens.capability
        try:
            while not self._intake.closed:
                await asyncio.sleep(tokens.pause_seconds(self._clock.chance()))
                if name not in self._halted and not await self._any_left(tokens):
                    break
        finally:
            self.waiting.discard(name)
            if not self._intake.closed:
                for level in Priority:
                    self._intake.resume_queue(routing.task_queue(name, level), PauseReason.RATE)

    async def _any_left(self, tokens: LeasedTokens) -> bool:
        """Start a capability's waiting tasks while its rate allows; tell whether its queues may still hold tasks."""
        levels = list(Priority)
        try:
            while levels:
                free = [level for level in levels if self._intake.can_start(level)]
                level = self._turns.choose(levels, free or levels[:1])
                if (started := await self._start_one(tokens, level)) is None:
                    return True
                if not started:
                    levels.remove(level)
        except CoditectError as error:
            log.warning("A queue cannot be asked yet", extra={"capability": tokens.capability, "reason": str(error)})
            tokens.postpone()
            return True
        return False

    async def _start_one(self, tokens: LeasedTokens, level: Priority) -> bool | None:
        """Wait for a slot, and start the next task of a priority level on it; return whether there was a task.

        Return None when there was no token for it, or the agent drains.
        """
        await self._intake.reserve(level)
        started = False
        try:
            if self._intake.closed or not await tokens.promise():
                return None
            started = await self._intake.fetch_one(routing.task_queue(tokens.capability, level), reserved=True)
            if not started:
                tokens.withdraw()
            return started
        finally:
            if not started:
                self._intake.release(level)
