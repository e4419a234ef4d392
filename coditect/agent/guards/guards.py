"""The concurrency limits, rates and breakers of one agent process, which must all allow the call of a handler.

A guard that refuses hands the task back without burning an attempt. The key comes first, as it may take long; the rate
comes before the breaker, so that a permit to probe is not given for a task that may not begin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from coditect.agent.declaration import Agent, Capability
from coditect.agent.execution.execution import Execution
from coditect.agent.execution.handler import HandedBack, HandlerEnd
from coditect.agent.guards.breakers import AgentBreakers
from coditect.agent.guards.keys import AgentKeys, KeyPort
from coditect.agent.guards.rates import AgentRates
from coditect.agent.intake.intake import Intake
from coditect.agent.settlement.settle import Settler
from coditect.aio.supervisor import Supervisor
from coditect.messaging.rpc import Requests
from coditect.registry.port import Registry


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
        self.breakers = AgentBreakers(agent, requests, intake, settler, background, name=requests.name)
        self.rates = AgentRates(agent, registry, settler.clock, intake, background, halted=self.breakers.waiting)
        self.registry = registry
        """The registry of the fleet's agents."""
        self._keys = AgentKeys(settler.clock)
        self.hand_back = self._keys.hand_back
        """Start a drain: the tasks that wait for a guard go back to their queues."""
        self.awaited_key = self._keys.awaited
        """Return the key for which a task waits, if it waits for one."""

    async def passed(
        self,
        capability: Capability,
        execution: Execution,
        services: Callable[[], KeyPort],
        run: Callable[[], Awaitable[HandlerEnd]],
    ) -> HandlerEnd:
        """Run an attempt if rate and breaker allow it, while it holds the lock that limits its concurrency, if any.

        `services` returns the task's services. The lock's key comes from the input; an input without one is rejected.

        Raises:
            SentBack: when a guard refuses; no attempt counts.
        """
        if capability.concurrency is None:
            return await self._in_time(capability, run)
        return await self._keys.held(capability, execution, services(), partial(self._in_time, capability, run))

    async def _in_time(self, capability: Capability, run: Callable[[], Awaitable[HandlerEnd]]) -> HandlerEnd:
        """Run an attempt if the rate has a token for it and the breaker lets it through; else hand the task back."""
        if capability.spec.rate is not None and not await self.rates.take(capability.name):
            raise HandedBack
        if capability.breaker is not None:
            return await self.breakers.guarded(capability, run)
        return await run()
