"""The guards of one agent process: what an execution must pass before its handler is called.

A guard that refuses hands the task back without burning an attempt, and lets the capability's tasks wait in their
queues. The rate comes before the breaker, so that a permit to probe is not given for a task that may not begin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from coditect.agent.declaration import Agent, Capability
from coditect.agent.execution.handler import HandedBack, HandlerEnd
from coditect.agent.guards.breakers import AgentBreakers
from coditect.agent.guards.rates import AgentRates
from coditect.agent.intake.intake import Intake
from coditect.agent.settlement.settle import Settler
from coditect.aio.supervisor import Supervisor
from coditect.messaging.rpc import Requests
from coditect.registry.port import Registry


class Guards:
    """The breakers and rates of one agent process."""

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

    def hold(self, capability: str) -> bool:
        """Tell whether the tasks of a capability wait in their queues now."""
        return capability in self.breakers.waiting or capability in self.rates.waiting

    async def passed(self, capability: Capability, run: Callable[[], Awaitable[HandlerEnd]]) -> HandlerEnd:
        """Run an attempt of a guarded capability once every guard lets it pass.

        Raises:
            HandedBack: when a guard refuses; the handler was not called.
        """
        if capability.spec.rate is not None and not await self.rates.take(capability.name):
            raise HandedBack
        if capability.breaker is not None:
            return await self.breakers.guarded(capability, run)
        return await run()
