"""The breakers of an agent process: which capabilities wait while a breaker is open, and the one task that probes it.

A capability waits for the breaker that it declares, and for any breaker that a handler of it met open. While the
breaker is open, the agent takes nothing from the capability's queues. When a probe is due and a queue holds a task, the
agent asks for the permit, and takes one task: its handler is the probe. The tasks of a capability with a fallback do
not wait: all but the probe go there before they begin. While no agent offers the fallback, they wait as others do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from coditect.agent.declaration import Agent, Capability
from coditect.agent.execution.handler import HandedBack, HandlerEnd
from coditect.agent.intake.intake import Intake
from coditect.agent.intake.queue_consumer import PauseReason
from coditect.agent.requeue import guarded
from coditect.agent.settlement.settle import Settler
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Delivery
from coditect.client.control_plane import ControlPlane
from coditect.errors import BreakerOpen, CoditectError, Unroutable
from coditect.messaging.rpc import Requests
from coditect.model.capability import Priority
from coditect.model.limits.breaker import BreakerScope, BreakerState, CallVerdict, refusal_in
from coditect.model.result import Status
from coditect.model.task import Task
from coditect.resilience.breakers import Breakers
from coditect.wire import routing

if TYPE_CHECKING:
    from coditect.resilience.breaker import CircuitBreaker

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""The pause between two looks for a task that could be the probe."""
NO_FALLBACK_SECONDS = 10.0
"""The pause before a capability looks again for an agent that offers its fallback."""


class AgentBreakers:
    """The breakers of one agent process, and the capabilities that wait for them."""

    def __init__(
        self, agent: Agent, requests: Requests, intake: Intake, settler: Settler, background: Supervisor, *, name: str
    ) -> None:
        self._agent = agent
        control = ControlPlane(requests.broker, requests, settler.clock)
        self._intake = intake
        self._settler = settler
        self._background = background
        now = asyncio.get_running_loop().time
        self._breakers = Breakers(agent.breakers, control, background, name=name, now=now, changed=self._changed)
        self.states = self._breakers.states
        """Return which state each breaker has, as the metric of breakers shows it."""
        self.get = self._breakers.get
        """Return the breaker of a name."""
        self._dependents: dict[str, set[str]] = {}
        """The capabilities that wait while a breaker is open, by the breaker's name."""
        self._diverted = {one.name: one for one in agent.capabilities if one.fallback is not None}
        for one in agent.capabilities:
            if one.breaker is not None and one.fallback is None:
                self._dependents.setdefault(one.breaker.name, set()).add(one.name)
        self._watches: dict[str, asyncio.Task[None]] = {}
        self.waiting: dict[str, str] = {}
        """The breaker for which each waiting capability waits."""

    async def learn(self) -> None:
        """Ask the control plane for open breakers, if one of scope `fleet` is declared; wait at most 2 s per answer."""
        if any(one.scope is BreakerScope.FLEET for one in self._agent.breakers.values()):
            await self._breakers.learn()

    def heard(self, state: BreakerState) -> None:
        """Adopt the state, as the control plane sent it, of a breaker that the whole fleet shares."""
        self._breakers.heard(state)

    # -- tasks ------------------------------------------------------------------------------------------

    def divert(self, task: Task, delivery: Delivery) -> Coroutine[Any, Any, None] | None:
        """Return a coroutine that sends a task to the fallback capability if the breaker refuses calls; else None.

        A workflow task must not be granted to this agent first: the grant of the next one would count as an attempt.
        """
        capability = self._diverted.get(task.capability)
        if capability is None or capability.breaker is None:
            return None
        breaker = self.get(capability.breaker)
        return self._send_to_fallback(task, delivery, capability, breaker) if breaker.refuses else None

    async def _send_to_fallback(
        self, task: Task, delivery: Delivery, capability: Capability, breaker: CircuitBreaker
    ) -> None:
        fallback = capability.fallback
        assert fallback is not None, "others are not diverted"

        async def send() -> None:
            try:
                await self._settler.forward(replace(task, capability=fallback), delivery.message.headers)
            except Unroutable:
                self._wait_for_fallback(capability, breaker)
                await self._intake.give_back(task, delivery)
            else:
                delivery.ack()

        await guarded(send(), delivery)

    async def guarded(self, capability: Capability, run: Callable[[], Awaitable[HandlerEnd]]) -> HandlerEnd:
        """Run an attempt as a call of the capability's breaker; a canceled or rejected one counts only if slow.

        Raises:
            HandedBack: when the breaker is open, so that the handler was not called.
        """
        assert capability.breaker is not None, "others are not guarded"
        call = self.get(capability.breaker).call()
        try:
            await call.__aenter__()
        except BreakerOpen as refused:
            raise HandedBack from refused
        try:
            ended = await run()
        except BaseException:
            call.end(asyncio.CancelledError())
            raise
        says = ended.status in (Status.COMPLETED, Status.FAILED)
        call.end(ended.error if says else asyncio.CancelledError())
        return ended

    def check(self, capability: Capability, ended: HandlerEnd) -> None:
        """Raise HandedBack if an ended attempt should not count, because of a breaker that is not closed.

        That is so after a call that a breaker refused, and after what the capability's own breaker, while it is not
        closed, judges a failure. The task goes back; after a refused call the capability also waits for that breaker.

        Raises:
            HandedBack: when the attempt is not to count.
        """
        refused = refusal_in(ended.error)
        if refused is not None:
            self._depends(capability, self.get(str(refused.facts["breaker"])))
            raise HandedBack
        if capability.breaker is not None:
            breaker = self.get(capability.breaker)
            if not breaker.is_closed and breaker.declared.judge(ended.error) is CallVerdict.FAILURE:
                raise HandedBack

    def _depends(self, capability: Capability, breaker: CircuitBreaker) -> None:
        diverted = capability.fallback is not None and capability.breaker == breaker.declared
        if diverted or breaker.is_closed:
            return
        self._dependents.setdefault(breaker.declared.name, set()).add(capability.name)
        self._pause(breaker, [capability.name])

    # -- waiting ----------------------------------------------------------------------------------------

    def _wait_for_fallback(self, capability: Capability, breaker: CircuitBreaker) -> None:
        """Pause a capability for 10 s, because no agent offers its fallback capability.

        Nothing happens if the capability is paused by a breaker already, or the breaker is closed.
        """
        if breaker.is_closed or capability.name in self.waiting:
            return
        fix = "run an agent that offers the fallback, or wait until the breaker closes"
        facts = {"breaker": breaker.declared.name, "capability": capability.name, "fallback": capability.fallback}
        log.warning("No agent offers the fallback of a capability; its tasks wait", extra=facts | {"fix": fix})
        self._dependents.setdefault(breaker.declared.name, set()).add(capability.name)
        self._pause(breaker, [capability.name])
        self._background.start(self._look_for_fallback(capability.name, breaker.declared.name), name="fallback")

    async def _look_for_fallback(self, capability: str, breaker: str) -> None:
        await asyncio.sleep(NO_FALLBACK_SECONDS)
        self._dependents[breaker].discard(capability)
        if self.waiting.get(capability) == breaker:
            self._resume([capability])

    def _changed(self, breaker: CircuitBreaker) -> None:
        name = breaker.declared.name
        if not breaker.is_closed and name not in self._watches:
            self._pause(breaker, self._dependents.get(name, ()))
            self._watches[name] = self._background.start(self._watch(breaker), name=f"breaker {name}")

    def _pause(self, breaker: CircuitBreaker, capabilities: Iterable[str]) -> None:
        for capability in capabilities:
            self.waiting[capability] = breaker.declared.name
            for queue in _queues(capability):
                self._intake.pause(queue, PauseReason.BREAKER)

    async def _watch(self, breaker: CircuitBreaker) -> None:
        """Start a waiting task as the probe whenever one is due, until a breaker closes; then resume its capabilities.

        A capability that also waits for another open breaker stays paused.
        """
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
            self._resume([one for one, breaker in self.waiting.items() if breaker == name])

    async def _probed(self, breaker: CircuitBreaker) -> bool:
        """Start a waiting task as the probe of a breaker if the permit is given; return whether a task was started."""
        try:
            for capability in sorted(self._dependents.get(breaker.declared.name, ())):
                for queue in _queues(capability):
                    if await self._intake.holds_tasks(queue):
                        return await breaker.reserve() and await self._intake.fetch_one(queue)
        except CoditectError as error:
            log.info("A breaker cannot be probed yet", extra={"breaker": breaker.declared.name, "reason": str(error)})
        return False

    def _resume(self, capabilities: Iterable[str]) -> None:
        if self._intake.closed:
            return
        for capability in capabilities:
            other = next((one for one in self._watches if capability in self._dependents.get(one, ())), None)
            if other is not None:  # it is open, too
                self.waiting[capability] = other
                continue
            del self.waiting[capability]
            for queue in _queues(capability):
                self._intake.resume_queue(queue, PauseReason.BREAKER)


def _queues(capability: str) -> list[str]:
    return [routing.task_queue(capability, level) for level in Priority]
