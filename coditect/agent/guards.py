"""The concurrency limits, rates and breakers of one agent process, which must all allow the call of a handler.

A guard that refuses hands the task back without burning an attempt. The key comes first, as it may take long; the rate
comes before the breaker, so that a permit to probe is not given for a task that may not begin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from coditect.agent.declaration import Agent, Capability
from coditect.agent.execution import Execution, ExecutionState
from coditect.agent.handler import AttemptOutcome, HandedBack, cut_short, unfit
from coditect.agent.intake import Intake, PauseReason, Turns
from coditect.agent.settlement import Settler, settle_or_return
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Delivery
from coditect.collaboration.locks import Lock, LockPort, Mode
from coditect.errors import (
    BreakerOpen,
    CoditectError,
    InvalidTask,
    LockLost,
    LockTaken,
    RegistryUnavailable,
    Unroutable,
)
from coditect.messaging.control_plane import ControlPlane
from coditect.messaging.rpc import Requests
from coditect.model.capability import Priority
from coditect.model.limits import KEY_LOCKS, BreakerScope, CallVerdict, Rate
from coditect.model.result import Status, first_in
from coditect.model.task import Task
from coditect.registry.port import Registry
from coditect.resilience.breakers import Breakers, CircuitBreaker
from coditect.wire import routing
from coditect.wire.json import loads

log = logging.getLogger(__name__)


class Guards:
    """The breakers, rates and concurrency limits of one agent process."""

    def __init__(
        self,
        agent: Agent,
        requests: Requests,
        intake: Intake,
        settler: Settler,
        background: Supervisor,
        *,
        registry: Registry,
    ) -> None:
        self.control = control = ControlPlane(requests.broker, requests, settler.clock)
        """The sender of the agent's requests to the control plane."""
        self.breakers = AgentBreakers(agent, control, intake, settler, background)
        self.rates = AgentRates(agent, registry, settler.clock, intake, background, halted=self.breakers.waiting)
        self.registry = registry
        """The registry of the fleet's agents."""
        self.keys = AgentKeys(settler.clock, intake)

    async def passed(
        self,
        capability: Capability,
        execution: Execution,
        services: Callable[[], LockPort],
        run: Callable[[], Awaitable[AttemptOutcome]],
    ) -> AttemptOutcome:
        """Run an attempt if rate and breaker allow it, while it holds the lock that limits its concurrency, if any.

        `services` returns the task's services. The lock's key comes from the input; an input without one is rejected.

        Raises:
            SentBack: when a guard refuses; no attempt counts.
        """
        if capability.concurrency is None:
            return await self._in_time(capability, run)
        return await self.keys.held(capability, execution, services(), partial(self._in_time, capability, run))

    async def _in_time(self, capability: Capability, run: Callable[[], Awaitable[AttemptOutcome]]) -> AttemptOutcome:
        """Run an attempt if the rate has a token for it and the breaker lets it through; else hand the task back."""
        if capability.spec.rate is not None and not await self.rates.take(capability.name):
            raise HandedBack
        if capability.breaker is not None:
            return await self.breakers.call(capability, run)
        return await run()


# The limits on how many tasks with an equal key run at the same time: each one first takes the lock of its key.
#
# The key comes from the task's input. The control plane grants the locks in order of arrival. A task that waits holds
# no slot, as one that awaits another; of those there are at most `max_suspended`, and a task above the bound goes back
# behind others.


TTL_SECONDS = 60.0
"""The time after which the key of a holder that stands still is free; the key of an evicted agent is free at once."""
MAX_KEY_WAIT_SECONDS = 600.0
"""How long a task waits for its key in one agent before it goes back to its queue, behind others."""

MAX_TIMED_KEY_WAIT_SECONDS = 30.0
"""The longest wait of a workflow task with its own timeout: its owner counts the wait, and adds 60 s to the timeout."""


class AgentKeys:
    """The locks of concurrency keys that the tasks of one agent process hold and wait for."""

    def __init__(self, clock: Clock, intake: Intake) -> None:
        self._clock, self._intake = clock, intake
        self._entering: dict[asyncio.Task[Any], tuple[str | None, str]] = {}
        """The asyncio tasks that wait for a key, with the id of the task and its key."""
        self._leaving = False

    def hand_back(self) -> None:
        """Start a drain: give back the tasks that wait for the lock of a key, and let no task take a lock any more."""
        self._leaving = True
        for work in self._entering:
            work.cancel()

    def awaited(self, task_id: str) -> str | None:
        """Return the name of the concurrency lock for which a task waits; None when it waits for none."""
        return next((key for task, key in self._entering.values() if task == task_id), None)

    async def held(
        self,
        capability: Capability,
        execution: Execution,
        services: LockPort,
        run: Callable[[], Awaitable[AttemptOutcome]],
    ) -> AttemptOutcome:
        """Run an attempt while the lock of its task's concurrency key is held; reject a task whose input gives no key.

        Raises:
            HandedBack: when the wait was too long, the key was lost, no dispatcher answers, or the agent has no slot
                while others may have one; no attempt counts.
            SentBack: when too many tasks of the agent wait already.
        """
        limit = capability.concurrency
        assert limit is not None, "others have no key"
        try:
            resource = f"{KEY_LOCKS}{capability.name}/{limit.key(loads(execution.task.body))}"
        except InvalidTask as error:
            return unfit(error)
        taken = not self._intake.may_suspend(execution) and any(key == resource for _, key in self._entering.values())
        if self._leaving or taken:
            raise HandedBack  # without a question: the agent drains, or the key is known to be taken
        lock = Lock(
            services,
            (resource,),
            mode=Mode.EXCLUSIVE if limit.most == 1 else f"at_most:{limit.most}",
            wait=True,
            timeout_seconds=self._wait_seconds(execution),
            ttl_seconds=TTL_SECONDS,
        )
        try:
            async with AsyncExitStack() as stack:
                return await self._entered(lock, stack, execution) or await run()
        except LockLost as lost:
            log.warning("A task lost its key and begins again", extra=self._facts(execution, lost))
            raise HandedBack from lost

    async def _entered(self, lock: Lock, stack: AsyncExitStack, execution: Execution) -> AttemptOutcome | None:
        """Wait for a lock, held until `stack` closes; return None, or how the attempt ended if it was canceled first.

        Raises:
            HandedBack: when the agent drains, or the lock cannot be taken now.
            LockLost: when the lock was lost meanwhile.
        """
        (resource,), work = lock.resources, asyncio.current_task()
        assert work is not None
        self._entering[work] = execution.task.id, resource
        execution.enter(ExecutionState.LOADING)
        try:
            await stack.enter_async_context(lock)
        except asyncio.CancelledError as error:
            if self._leaving and not execution.asked_to_end:
                work.uncancel()
                raise HandedBack from error
            return cut_short(execution, error, lambda: True)
        except LockLost:
            raise
        except CoditectError as error:
            if not isinstance(error, LockTaken):
                log.warning("The key of a task cannot be taken yet", extra=self._facts(execution, error))
            raise HandedBack from error
        finally:
            execution.leave()
            del self._entering[work]
        return None

    def _wait_seconds(self, execution: Execution) -> float:
        task = execution.task
        timed = task.owner is not None and task.limits.timeout_ms is not None
        limit, deadline_ms = MAX_TIMED_KEY_WAIT_SECONDS if timed else MAX_KEY_WAIT_SECONDS, task.limits.deadline_ms
        if deadline_ms is None:
            return limit
        return min(limit, max(0.0, (deadline_ms - self._clock.now_ms()) / 1000))

    def _facts(self, execution: Execution, error: CoditectError) -> dict[str, str | None]:
        return {"task_id": execution.task.id, "capability": execution.task.capability, "reason": str(error)}


# The rate limits of an agent process: which capabilities wait for tokens, and the fetch of one task for each token.
#
# Where tokens are plenty, the capability's queues are consumed as any, and an execution takes a token as it begins.
# When there is none, the agent takes nothing more from the queues; then each token fetches one task, until the queues
# are empty. Without an answer of the registry no execution begins: a rate is never exceeded for want of knowledge.


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
            capability.name: LeasedTokens(capability.name, capability.spec.rate, registry, now=now)
            for capability in agent.capabilities
            if capability.spec.rate is not None
        }
        self._clock, self._intake, self._background, self._halted = clock, intake, background, halted
        self._turns = Turns()
        self.waiting: set[str] = set()
        """The capabilities whose tasks wait for tokens in their queues."""

    def shortages(self) -> tuple[tuple[str, str], ...]:
        """Return each capability whose tasks wait for its rate, with the rate and why there are no tokens, if known.

        The text is for people.
        """
        return tuple((name, self._shortage(self._tokens[name])) for name in sorted(self.waiting))

    def _shortage(self, tokens: LeasedTokens) -> str:
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
        await self._intake.next_slot(level)
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
                self._intake.free(level)


# The tokens of one capability's rate that an agent process holds: leased in batches, lost when they are not used.
#
# A batch grows while it is used up before it ends, and shrinks to what was used: a busy capability asks the registry
# some times a second, whatever its rate, and an idle one never.

LEASE_RETRY_SECONDS = 0.5
"""The pause after the registry did not answer."""


class LeasedTokens:
    """The tokens of one capability's rate limit in one process; each token lets one execution begin."""

    def __init__(self, capability: str, rate: Rate, registry: Registry, *, now: Callable[[], float]) -> None:
        self.capability, self.rate = capability, rate
        self._registry, self._now = registry, now
        self._hold_seconds = rate.hold_seconds
        self._tokens = self._promised = self._leased = 0
        self._until, self._none_before = -inf, -inf
        """The event loop's times at which the tokens are lost, and before which the bucket has no more of them."""
        self._batch = 1
        self._wanting = 0
        self._asking = asyncio.Lock()
        self.trouble = ""
        """Why the registry gives no tokens; empty while it answers."""

    async def take(self) -> bool:
        """Take a token for an execution that begins now; False when there is none, or the registry does not answer."""
        self._wanting += 1
        try:
            if self._held() <= 0:
                await self._ask(lambda: self._held() > 0)
        finally:
            self._wanting -= 1
        if self._held() <= 0:
            return False
        self._tokens -= 1
        self._promised = max(0, self._promised - 1)
        return True

    async def promise(self) -> bool:
        """Reserve a token for a task that is being fetched, so that `take` finds it; False when no token is left."""
        if self._held() <= self._promised:
            await self._ask(lambda: self._held() > self._promised)
        if self._held() <= self._promised:
            return False
        self._promised += 1
        return True

    def withdraw(self) -> None:
        """Release a token that `promise` reserved, because there was no task to fetch."""
        self._promised = max(0, self._promised - 1)

    def pause_seconds(self, chance: float) -> float:
        """Return how many seconds to wait before the registry is asked for tokens again.

        That is until its bucket has a token, or longer: a part of the tokens' holding time that `chance` (0 to 1)
        varies, in which the bucket gets several.
        """
        return max(self._none_before - self._now(), self._hold_seconds * (0.25 + 0.5 * chance))

    def postpone(self) -> None:
        """Ask the registry for no tokens of this capability in the next 0.5 s (`LEASE_RETRY_SECONDS`)."""
        self._none_before = self._now() + LEASE_RETRY_SECONDS

    def _held(self) -> int:
        if self._now() >= self._until:
            self._promised = 0
            return 0
        return self._tokens

    async def _ask(self, enough: Callable[[], bool]) -> None:
        """Lease a batch of tokens from the registry, unless `enough` returns True, or it is too early to ask again."""
        async with self._asking:
            now = self._now()
            if enough() or now < self._none_before:
                return
            early = now < self._until
            self._batch = 2 * self._leased if early else max(1, self._leased - self._tokens)
            try:
                lease = await self._registry.lease_tokens(
                    self.capability, self.rate, max(1, self._wanting, self._batch)
                )
            except RegistryUnavailable as error:
                if not self.trouble:
                    log.warning("A capability waits for the tokens of its rate", extra=self._facts(error))
                self.trouble = "the registry does not answer"
                self.postpone()
                return
            self.trouble = ""
            left = self._held()
            self._until = min(self._until if left else inf, now + lease.hold_seconds)
            self._tokens, self._leased, self._hold_seconds = left + lease.tokens, lease.tokens, lease.hold_seconds
            self._none_before = self._now() + lease.wait_seconds

    def _facts(self, error: RegistryUnavailable) -> dict[str, str]:
        return {"capability": self.capability, "rate": str(self.rate), "reason": str(error)}


# The breakers of an agent process: which capabilities wait while a breaker is open, and the one task that probes it.
#
# A capability waits for the breaker that it declares, and for any breaker that a handler of it met open. While the
# breaker is open, the agent takes nothing from the capability's queues. When a probe is due and a queue holds a task,
# the agent asks for the permit, and takes one task: its handler is the probe. The tasks of a capability with a fallback
# do not wait: all but the probe go there before they begin. While no agent offers the fallback, they wait as others do.

BREAKER_CHECK_SECONDS = 0.5
"""The pause between two looks for a task that could be the probe."""
NO_FALLBACK_SECONDS = 10.0
"""The pause before a capability looks again for an agent that offers its fallback."""


class AgentBreakers:
    """The breakers of one agent process, and the capabilities that wait for them."""

    def __init__(
        self, agent: Agent, control: ControlPlane, intake: Intake, settler: Settler, background: Supervisor
    ) -> None:
        self._agent = agent
        self._intake = intake
        self._settler = settler
        self._background = background
        now = asyncio.get_running_loop().time
        name, changed = control.name, self._changed
        self._breakers = Breakers(agent.breakers, control, background, name=name, now=now, changed=changed)
        self.states = self._breakers.states
        """Return which state each breaker has, as the metric of breakers shows it."""
        self.heard = self._breakers.heard
        """Adopt the state, as the control plane sent it, of a breaker that the whole fleet shares."""
        self.get = self._breakers.get
        """Return the breaker of a name."""
        self._dependents: dict[str, set[str]] = {}
        """The capabilities that wait while a breaker is open, by the breaker's name."""
        for capability in agent.capabilities:
            if capability.breaker is not None and capability.fallback is None:
                self._dependents.setdefault(capability.breaker.name, set()).add(capability.name)
        self._watches: dict[str, asyncio.Task[None]] = {}
        self.waiting: dict[str, str] = {}
        """The breaker for which each waiting capability waits."""

    async def learn(self) -> None:
        """Ask the control plane for open breakers, if one of scope `fleet` is declared; wait at most 2 s per answer."""
        if any(breaker.scope is BreakerScope.FLEET for breaker in self._agent.breakers.values()):
            await self._breakers.learn()

    # -- tasks ------------------------------------------------------------------------------------------

    def divert(self, capability: Capability, task: Task, delivery: Delivery) -> Coroutine[Any, Any, None] | None:
        """Return a coroutine that sends a task to the fallback capability if the breaker refuses calls; else None.

        A workflow task must not be granted to this agent first: the grant of the next one would count as an attempt.
        """
        if capability.breaker is None or capability.fallback is None:
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
                diverted = replace(task, capability=fallback)
                await self._settler.send_to(routing.SUBMIT, diverted, delivery.message.headers)
            except Unroutable:
                self._wait_for_fallback(capability, breaker)
                await self._intake.give_back(task, delivery)
            else:
                delivery.ack()

        await settle_or_return(send(), delivery)

    async def call(self, capability: Capability, run: Callable[[], Awaitable[AttemptOutcome]]) -> AttemptOutcome:
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

    def check(self, capability: Capability, ended: AttemptOutcome) -> None:
        """Raise HandedBack if an ended attempt should not count, because of a breaker that is not closed.

        That is so after a call that a breaker refused, and after what the capability's own breaker, while it is not
        closed, judges a failure. The task goes back; after a refused call the capability also waits for that breaker.

        Raises:
            HandedBack: when the attempt is not to count.
        """
        refused = first_in(ended.error, BreakerOpen)
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
                    await breaker.next_change(BREAKER_CHECK_SECONDS)
        finally:
            del self._watches[name]
            self._resume([capability for capability, breaker in self.waiting.items() if breaker == name])

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
            other = next((watch for watch in self._watches if capability in self._dependents.get(watch, ())), None)
            if other is not None:  # it is open, too
                self.waiting[capability] = other
                continue
            del self.waiting[capability]
            for queue in _queues(capability):
                self._intake.resume_queue(queue, PauseReason.BREAKER)


def _queues(capability: str) -> list[str]:
    return [routing.task_queue(capability, level) for level in Priority]
