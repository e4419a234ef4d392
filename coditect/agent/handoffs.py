"""The answers of an agent when others offer it a running task: as its `on_handoff` function says, or by default.

By default an agent accepts a task that it could begin at once: it offers the capability, has a free slot, waits for no
breaker or rate of the capability, and the input fits. An agent never accepts a capability that it does not offer.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.runtime import Runtime
from coditect.aio.threads import Carried, carry_await, in_thread
from coditect.client.control_plane import ControlPlane
from coditect.errors import CoditectError, InvalidTask
from coditect.model.capability import Priority
from coditect.model.result import error_name, original_error
from coditect.wire import routing
from coditect.wire.control import Verb
from coditect.wire.handoffs import HandoffOffer
from coditect.wire.json import dumps

log = logging.getLogger(__name__)

DECIDE_SECONDS = 8.0
"""How long an `on_handoff` function may take: after ten seconds the next agent is asked."""
ANSWER_SECONDS = 30.0


class OfferedHandoffs:
    """The answers of one agent process to the handoffs that are offered to it."""

    def __init__(self, agent: Agent, runtime: Runtime) -> None:
        self._runtime = runtime
        self._decide = agent.handoff_policy
        self._capabilities = {one.name: one for one in agent.capabilities}

    async def answer(self, offer: HandoffOffer) -> None:
        """Decide about an offered task, and tell the control plane; a decision that gets lost counts as no answer."""
        why = await self._refusal(offer)
        verb = Verb.HANDOFF_DECLINE if why else Verb.HANDOFF_ACCEPT
        body = {"handoff": offer.handoff, "agent": self._runtime.agent_id, "reason": why}
        control: ControlPlane = self._runtime.means.control
        try:
            told = await control.ask(verb, body, timeout=ANSWER_SECONDS)
        except CoditectError as error:
            log.info("The answer to a handoff was not taken", extra={"handoff": offer.handoff, "reason": str(error)})
        else:
            log.debug("A handoff was answered", extra={"handoff": offer.handoff, "state": told.get("state")})

    async def _refusal(self, offer: HandoffOffer) -> str:
        """Return why the agent declines the task; empty when it accepts."""
        if offer.capability not in self._capabilities:
            return f"it does not offer {offer.capability}"
        if self._decide is not None:
            try:
                async with asyncio.timeout(DECIDE_SECONDS):
                    decided = await carry_await(_called(self._decide, offer))
            except TimeoutError as error:
                decided = Carried.failed(error)
            if decided.error is not None:
                log.warning("An on_handoff function failed", exc_info=decided.error, extra={"handoff": offer.handoff})
                return f"its on_handoff function failed: {error_name(original_error(decided.error))}"
            if decided.value is not None:
                return _told(decided.value)
        return await self._by_default(offer)

    async def _by_default(self, offer: HandoffOffer) -> str:
        runtime, capability = self._runtime, self._capabilities[offer.capability]
        guards = runtime.guards
        if offer.capability in guards.breakers.waiting or not await guards.rates.has_token(offer.capability):
            return f"its tasks of {offer.capability} wait for a breaker or a rate"
        if not runtime.means.intake.is_free(routing.task_queue(offer.capability, Priority.P1)):
            return "it has no free slot, or other tasks wait for one"
        if offer.whole:
            try:
                capability.signature.input.decode(dumps(offer.input))
            except InvalidTask as error:
                return f"the input does not fit: {error}"[:500]
        return ""


async def _called(decide: Callable[..., Any], offer: HandoffOffer) -> Any:
    """Call an `on_handoff` function and return its decision; a plain function, which may block, runs in a thread."""
    if inspect.iscoroutinefunction(decide):
        return await decide(offer)
    decided = await in_thread(partial(decide, offer))
    return await decided if inspect.isawaitable(decided) else decided


def _told(decided: Any) -> str:
    """Return why an `on_handoff` function declines, from its result (True, False or a reason); empty if it accepts."""
    if decided is True:
        return ""
    return decided if isinstance(decided, str) and decided else "its on_handoff function declined"
