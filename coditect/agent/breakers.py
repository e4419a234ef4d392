"""The breakers of an agent process: which capabilities wait while a breaker is open, and the one task that probes it.

A capability waits for the breaker that it declares, and for any breaker that a handler of it met open. While the
breaker is open, the agent takes nothing from the capability's queues. When a probe is due and a queue holds a task, the
agent asks for the permit, and takes one task: its handler is the probe. A capability with a fallback does not wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from coditect.agent.declaration import Agent, Capability
from coditect.agent.execution.handler import HandedBack, HandlerEnd
from coditect.agent.intake.intake import Intake
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.client.control_plane import ControlPlane
from coditect.errors import BreakerOpen, CoditectError
from coditect.messaging.rpc import Requests
from coditect.model.breaker import BreakerScope, BreakerState, CallVerdict
from coditect.model.capability import Priority
from coditect.model.result import Status
from coditect.resilience.breaker import CircuitBreaker
from coditect.resilience.breakers import Breakers
from coditect.wire import routing

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""The pause between two looks for a task that could be the probe."""
LEARN_SECONDS = 2.0


class AgentBreakers:
    """The breakers of one agent process, and the capabilities that wait for them."""

    def __init__(
        self, agent: Agent, requests: Requests, clock: Clock, intake: Intake, background: Supervisor, *, name: str
    ) -> None:
        self._agent = agent
        self._broker = requests.broker
        control = ControlPlane(requests.broker, requests, clock)
        self._intake = intake
        self._background = background
        now = asyncio.get_running_loop().time
        self._breakers = Breakers(agent.breakers, control, background, name=name, now=now, changed=self._changed)
        self.get = self._breakers.get
        """Return the breaker of a name."""
        self._dependents: dict[str, set[str]] = {}
        """The capabilities that wait while a breaker is open, by the breaker's name."""
        for one in agent.capabilities:
            if one.breaker is not None and one.fallback is None:
                self._dependents.setdefault(one.breaker.name, set()).add(one.name)
        self._watches: dict[str, asyncio.Task[None]] = {}
        self.waiting: dict[str, str] = {}
        """The breaker for which each waiting capability waits."""

    async def learn(self) -> None:
        """Learn which breakers of the fleet are open, if the agent declares any; at most two seconds."""
        if any(one.scope is BreakerScope.FLEET for one in self._agent.breakers.values()):
            await self._breakers.learn()

    def heard(self, state: BreakerState) -> None:
        """Take over news of a breaker of the fleet."""
        self._breakers.heard(state)

    # -- tasks ------------------------------------------------------------------------------------------

    async def guarded(self, capability: Capability, run: Callable[[], Awaitable[HandlerEnd]]) -> HandlerEnd:
        """Run an attempt as a call of the capability's breaker; one that was canceled or rejected says nothing.

        Raises:
            HandedBack: when the breaker is open, so that the handler was not called.
        """
        assert capability.breaker is not None, "others are not guarded"
        call = self.get(capability.breaker).call()
        try:
            await call.__aenter__()
        except BreakerOpen as refused:
            raise HandedBack(capability.fallback) from refused
        try:
            ended = await run()
        except BaseException:
            call.end(asyncio.CancelledError())
            raise
        says = ended.status in (Status.COMPLETED, Status.FAILED)
        call.end(ended.error if says else asyncio.CancelledError())
        return ended

    def check(self, capability: Capability, ended: HandlerEnd) -> None:
        """Let a failed attempt not count when the breaker that it met, or uses, is open.

        The capability then waits for that breaker, too.

        Raises:
            HandedBack: when the attempt is not to count.
        """
        refused = _refusal(ended.error)
        if refused is not None:
            self._depends(capability, self.get(str(refused.facts["breaker"])))
            raise HandedBack
        if capability.breaker is not None:
            breaker = self.get(capability.breaker)
            if not breaker.is_closed and breaker.declared.judge(ended.error) is CallVerdict.FAILURE:
                raise HandedBack

    def _depends(self, capability: Capability, breaker: CircuitBreaker) -> None:
        if capability.fallback is not None or breaker.is_closed:
            return
        self._dependents.setdefault(breaker.declared.name, set()).add(capability.name)
        self._pause(breaker, [capability.name])

    # -- waiting ----------------------------------------------------------------------------------------

    def _changed(self, breaker: CircuitBreaker) -> None:
        name = breaker.declared.name
        if not breaker.is_closed and name not in self._watches:
            self._pause(breaker, self._dependents.get(name, ()))
            self._watches[name] = self._background.start(self._watch(breaker), name=f"breaker {name}")

    def _pause(self, breaker: CircuitBreaker, capabilities: Iterable[str]) -> None:
        for capability in capabilities:
            self.waiting[capability] = breaker.declared.name
            for queue in _queues(capability):
                self._intake.pause(queue)

    async def _watch(self, breaker: CircuitBreaker) -> None:
        """Let one task through in each interval while a breaker is open; then resume what waited for it."""
        name = breaker.declared.name
        try:
            while not breaker.is_closed:
                wait = breaker.wait_seconds
                if wait > 0:
                    await breaker.next_change(wait)
                elif not await self._probed(breaker):
                    await breaker.next_change(LOOK_SECONDS)
        finally:
            del self._watches[name]
            if not self._intake.closed:
                self._resume(name)

    async def _probed(self, breaker: CircuitBreaker) -> bool:
        """Start a task as the probe of a breaker, if one waits and the permit is given."""
        try:
            for capability in sorted(self._dependents.get(breaker.declared.name, ())):
                for queue in _queues(capability):
                    stats = await self._broker.stats(queue)
                    if stats is not None and stats.messages:
                        return await breaker.reserve() and await self._intake.fetch_one(queue)
        except CoditectError as error:
            log.info("A breaker cannot be probed yet", extra={"breaker": breaker.declared.name, "reason": str(error)})
        return False

    def _resume(self, breaker: str) -> None:
        for capability in [one for one, name in self.waiting.items() if name == breaker]:
            del self.waiting[capability]
            for queue in _queues(capability):
                self._intake.resume_queue(queue)


def _queues(capability: str) -> list[str]:
    return [routing.task_queue(capability, level) for level in Priority]


def _refusal(error: BaseException | None) -> BreakerOpen | None:
    """Return the refusal by an open breaker that an attempt failed with, also among the errors of a task group."""
    if isinstance(error, BaseExceptionGroup):
        found = error.subgroup(BreakerOpen)
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]  # type: ignore[assignment]
        error = found
    return error if isinstance(error, BreakerOpen) else None
