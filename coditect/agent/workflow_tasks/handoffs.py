"""The owner's side of a handoff: finds the agents to ask, asks the control plane, and waits for the end.

After an acceptance the execution is canceled here: the control plane has moved the task, so whatever this agent would
still tell of it is refused by its fence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from coditect.agent.execution.execution import Execution
from coditect.client.control_plane import ControlPlane
from coditect.collaboration.handoffs import HandoffState
from coditect.errors import CoditectError, ControlPlaneRequired, InputError, Retryable
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.model.task import Owner
from coditect.registry.port import Registry, Search
from coditect.wire.control import Verb

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""The pause between two questions for the state of a handoff, asked in case the news of its end was lost."""
WITHDRAW_SECONDS = 10.0
KEEP_IT = "submit it with durable=True, or make it a node of a workflow"


def owner_to_hand_off(execution: Execution) -> Owner:
    """Return the owner (the workflow's node) of a task, after a check that the task can be handed off.

    Raises:
        InputError: when it is a direct task: the broker alone has it.
    """
    if execution.task.owner is None:
        raise InputError(
            "A direct task cannot be handed off: the control plane does not keep it",
            task=execution.task.id,
            fix=KEEP_IT,
        )
    return execution.task.owner


class Handoffs:
    """The handoffs that the tasks of one agent process request."""

    def __init__(self, control: ControlPlane, requests: Requests, registry: Registry) -> None:
        self._control = control
        self._requests = requests
        self._registry = registry

    async def request(
        self, execution: Execution, owner: Owner, to: str, *, reason: str, context: Any, timeout_seconds: float
    ) -> dict[str, Any]:
        """Ask the control plane to offer a task to others, and return the handoff as JSON values; `wait` must follow.

        If it is canceled meanwhile, the handoff is withdrawn as by a canceled `wait`.

        Raises:
            RegistryUnavailable: when the agents to ask are not known; retryable.
            InputError: when the task is not this agent's any more, or was handed off too often.
            TooLarge: when the context is over 64,000 bytes.
            ControlPlaneRequired: when no dispatcher answers.
        """
        candidates, capability = await self._candidates(to)
        ticket = self._requests.new_token()
        self._requests.expect(ticket)  # the news may come before the answer
        body = {
            "workflow": owner.workflow,
            "node": owner.node,
            "fence": owner.fence,
            "agent": self._requests.name,
            "to": to,
            "capability": capability,
            "candidates": candidates,
            "reason": reason,
            "context": context,
            "timeout_ms": max(1, round(1000 * timeout_seconds)),
            "ticket": ticket,
            "reply_to": self._requests.reply_to,
        }
        asked = asyncio.ensure_future(self._control.ask(Verb.HANDOFF_REQUEST, body))
        try:
            return await asyncio.shield(asked) | {"ticket": ticket}
        except BaseException as error:
            self._requests.forget(ticket)
            if isinstance(error, asyncio.CancelledError):
                _end_if_accepted(execution, await asyncio.shield(self._take_back(asked)))
            raise

    async def wait(self, requested: dict[str, Any], execution: Execution) -> dict[str, Any]:
        """Wait until a handoff has ended and return it; after an acceptance, end the execution instead.

        If the wait is canceled, the handoff is withdrawn; one that is accepted already ends the execution all the same.
        """
        handoff, ticket, known = requested["handoff"], requested["ticket"], requested
        try:
            while known["state"] == HandoffState.REQUESTED:
                await asyncio.wait({self._requests.expect(ticket)}, timeout=LOOK_SECONDS)
                known = await self._look(handoff, known)
        except asyncio.CancelledError:
            _end_if_accepted(execution, await asyncio.shield(self._withdraw(handoff, known)))
            raise
        finally:
            self._requests.forget(ticket)
        if _end_if_accepted(execution, known):
            await asyncio.get_running_loop().create_future()  # the cancellation ends it
        return known

    async def of_task(self, owner: Owner) -> dict[str, Any]:
        """Return the last accepted handoff of a task as JSON values; `handoff`, its id, is None when there was none."""
        return await self._control.ask(Verb.HANDOFF_SHOW, {"task": f"{owner.workflow}:{owner.node}"})

    async def _look(self, handoff: str, known: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._control.ask(Verb.HANDOFF_SHOW, {"handoff": handoff})
        except (Retryable, ControlPlaneRequired):  # the task is still this agent's, as far as anybody knows
            return known

    async def _take_back(self, asked: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        """Await the answer to a handoff request, then withdraw the handoff; without an answer, let it time out."""
        try:
            requested = await asyncio.wait_for(asked, WITHDRAW_SECONDS)
        except (CoditectError, TimeoutError):
            return {"state": HandoffState.REQUESTED}
        return await self._withdraw(requested["handoff"], requested)

    async def _withdraw(self, handoff: str, known: dict[str, Any]) -> dict[str, Any]:
        body = {"handoff": handoff, "by": self._requests.name, "reason": "its owner does not wait any more"}
        try:
            return await self._control.ask(Verb.HANDOFF_WITHDRAW, body, timeout=WITHDRAW_SECONDS)
        except CoditectError as error:
            log.info("A handoff is left to its time", extra={"handoff": handoff, "reason": str(error)})
            return known

    async def _candidates(self, to: str) -> tuple[list[str], str]:
        """Return the ids of the living agents that `to` names, except this one, most free slots first.

        `to` is the id of an agent, or a name or capability of agents; the second value is the capability, else empty.
        """
        one = await self._registry.get(AgentId(to))
        if one is not None:
            return self._askable([one]), ""
        named = [each for each in await self._registry.find(Search(keyword=to)) if each.registration.name == to]
        if named:
            return self._askable(named), ""
        return self._askable(await self._registry.find(Search(capability=to))), to

    def _askable(self, found: Sequence[AgentRecord]) -> list[str]:
        living = [one for one in found if one.load.status not in {AgentStatus.DRAINING, AgentStatus.OFFLINE}]
        return [one.agent_id for one in sorted(living, key=_free) if one.agent_id != self._requests.name]


def _free(record: AgentRecord) -> tuple[int, str]:
    return -record.free_slots, record.agent_id


def _end_if_accepted(execution: Execution, known: dict[str, Any]) -> bool:
    """End the execution of a task if another agent has accepted the task; return whether one has."""
    if known["state"] != HandoffState.ACCEPTED:
        return False
    log.info("A task was handed off", extra={"task_id": execution.task.id, "to": known["by"]})
    execution.cancel(f"handed off to {known['by']}", handed_off=True)
    return True
