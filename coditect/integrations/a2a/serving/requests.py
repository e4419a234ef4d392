"""The fleet as an A2A agent: a message without a task's id starts a durable task, which any API process finds by id.

The control plane keeps the tasks, so nothing is lost with the process that took a message, and none of the SDK's stores
of tasks is needed. A task's context is a label of its workflow; a message that is sent again is the same task.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from a2a.auth.user import User
from a2a.server.context import ServerCallContext
from a2a.server.events.event_queue import Event as A2aEvent
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import TaskNotCancelableError, UnsupportedOperationError

from coditect.aio.clock import SystemClock
from coditect.client.client import Client
from coditect.client.durable import NODE, durable_definition, durable_id
from coditect.client.handle import Handle
from coditect.client.options import Options
from coditect.integrations.a2a.parts import text_of
from coditect.integrations.a2a.serving.card import fleet_card, skilled
from coditect.integrations.a2a.serving.listing import list_tasks
from coditect.integrations.a2a.serving.orders import check_wishes, input_of, no_push, refuse_continuation, skill_of
from coditect.integrations.a2a.serving.problems import told
from coditect.integrations.a2a.serving.reading import follow, handle_of, read_task, settled
from coditect.integrations.a2a.serving.tasks import ASKING, CONTEXT, ENDED, KIND
from coditect.integrations.tools import OfferedCapabilities, own_key
from coditect.model.capability import CapabilitySpec
from coditect.operations.connections import Connections
from coditect.operations.fleet import find_agents
from coditect.operations.workflows.requests import answer_approval
from coditect.settings.api import ApiSettings

LONGEST_WAIT = "10m"
"""How long a message waits for the end of its task; then the task is answered as it is."""
CANCEL_SECONDS = 5.0
"""How long a cancel waits for the end of the task; then the task is answered as it is."""
ADDRESS = "coditect.address"
"""The name under which the context of a call has the address at which the sender reaches the agent."""
KEPT = Options(durable=True)
ANSWERS: Mapping[str, bool] = MappingProxyType({"grant": True, "deny": False})
"""The texts that answer the approval of a task, and whether they grant it."""


@dataclass(frozen=True)
class Sender(User):
    """The sender of an A2A request: a name, and a check of the roles that the sender has."""

    name: str
    check: Callable[[str], None]
    """Raises the error to answer unless the sender has the given role: viewer, operator or approver."""

    @property
    def is_authenticated(self) -> bool:
        """Always true, since the API has let the sender in before."""
        return True

    @property
    def user_name(self) -> str:
        """The name of the A2A client that sent the request."""
        return self.name


class FleetRequests(RequestHandler):
    """The handler of A2A clients' requests, which asks the control plane and the registry for the answers."""

    def __init__(self, opened: Connections, settings: ApiSettings) -> None:
        self._opened = opened
        self._settings = settings
        self._offers = OfferedCapabilities(partial(find_agents, opened))

    async def on_get_extended_agent_card(
        self, params: a2a.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> a2a.AgentCard:
        """Return the fleet's agent card with all skills."""
        with told():
            return fleet_card(await self.skills(), self._settings, url=context.state[ADDRESS])

    async def skills(self) -> dict[str, CapabilitySpec]:
        """Return the capabilities offered as A2A skills, by name, as living agents had them at most a second ago.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        return skilled((await self._offers.now()).values())

    @validate_request_params
    async def on_message_send(self, params: a2a.SendMessageRequest, context: ServerCallContext) -> a2a.Task:
        """Start a durable task by a message, or answer a task's approval; return the task, by default at its end.

        Unless the sender wants the answer at once, wait first until the task has ended or waits for an approval, or
        for ten minutes.
        """
        _check_role(params, context)
        with told():
            async with self._opened.fleet() as client:
                handle = await self._taken(client, params, context)
                if params.configuration.return_immediately:
                    return await read_task(handle)
                return await settled(handle, timeout=LONGEST_WAIT)

    @validate_request_params
    async def on_message_send_stream(
        self, params: a2a.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[A2aEvent]:
        """Start a durable task by a message, or answer a task's approval; yield the task, its progress and its end.

        The value comes before the end. A task that waits for an approval ends the stream, too.
        """
        _check_role(params, context)
        with told():
            async with self._opened.fleet() as client:
                handle = await self._taken(client, params, context)
                async with aclosing(follow(client, handle)) as events:
                    async for event in events:
                        yield event

    @validate_request_params
    async def on_subscribe_to_task(
        self, params: a2a.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[A2aEvent]:
        """Yield a task that has not ended, then its progress, value and end; stop early if it waits for an approval."""
        with told():
            async with self._opened.fleet() as client:
                handle = handle_of(client, params.id)
                if (await read_task(handle)).status.state in ENDED:
                    raise UnsupportedOperationError("The task has ended; GetTask has its end")
                async with aclosing(follow(client, handle)) as events:
                    async for event in events:
                        yield event

    @validate_request_params
    async def on_get_task(self, params: a2a.GetTaskRequest, context: ServerCallContext) -> a2a.Task:
        """Return the A2A task of an id in its present state, with its value or failure once it has ended."""
        with told():
            async with self._opened.fleet() as client:
                return await read_task(handle_of(client, params.id))

    @validate_request_params
    async def on_cancel_task(self, params: a2a.CancelTaskRequest, context: ServerCallContext) -> a2a.Task:
        """Cancel a task that has not ended yet, and return it once it has ended, or after five seconds."""
        _sender(context).check("operator")
        with told():
            async with self._opened.fleet() as client:
                handle = handle_of(client, params.id)
                if (await read_task(handle)).status.state in ENDED:
                    raise TaskNotCancelableError("The task has ended; GetTask has its end")
                await handle.cancel(reason=f"canceled by the A2A client {_sender(context).name}")
                return await settled(handle, timeout=CANCEL_SECONDS)

    async def on_list_tasks(self, params: a2a.ListTasksRequest, context: ServerCallContext) -> a2a.ListTasksResponse:
        """Return a page of the tasks that A2A clients sent, the latest first."""
        with told():
            async with self._opened.fleet() as client:
                return await list_tasks(client, params)

    async def on_create_task_push_notification_config(self, params: Any, context: ServerCallContext) -> Any:
        """Refuse to register an address for push notifications, which are not sent."""
        raise no_push()

    async def on_get_task_push_notification_config(self, params: Any, context: ServerCallContext) -> Any:
        """Refuse to show an address for push notifications, which are not sent."""
        raise no_push()

    async def on_list_task_push_notification_configs(self, params: Any, context: ServerCallContext) -> Any:
        """Refuse to list the addresses for push notifications, which are not sent."""
        raise no_push()

    async def on_delete_task_push_notification_config(self, params: Any, context: ServerCallContext) -> None:
        """Refuse to remove an address for push notifications, which are not sent."""
        raise no_push()

    async def _taken(self, client: Client, request: a2a.SendMessageRequest, context: ServerCallContext) -> Handle:
        """Submit a message's task once, or answer the approval of the task that the message names; return a handle."""
        message, sender = request.message, _sender(context)
        if message.task_id:
            return await self._answered(client, message, sender)
        spec = skill_of(request, await self.skills())
        check_wishes(request, spec)
        clock = SystemClock()
        given = input_of(message.parts, spec)
        run = await client.start(
            durable_definition(spec.name, given, KEPT, now_ms=clock.now_ms()),
            key=own_key("a2a", sender.name, message.message_id, [spec.name, given]),
            labels={CONTEXT: message.context_id or clock.new_id(), **KIND},
        )
        return client.task(durable_id(run.id))

    async def _answered(self, client: Client, message: a2a.Message, sender: Sender) -> Handle:
        """Grant or deny, as the message's text says, the approval for which a task waits; return the task's handle."""
        handle = handle_of(client, message.task_id)
        word = text_of(message.parts).strip().lower()
        if (await read_task(handle)).status.state != ASKING or word not in ANSWERS:
            raise refuse_continuation(message.task_id)
        workflow, granted = handle.run.id, ANSWERS[word]
        await answer_approval(self._opened, workflow, NODE, granted=granted, by=sender.name, comment="by A2A")
        return handle


def _check_role(request: a2a.SendMessageRequest, context: ServerCallContext) -> None:
    """Check that the sender may send a message: an operator for a new task, an approver for one that names a task."""
    _sender(context).check("approver" if request.message.task_id else "operator")


def _sender(context: ServerCallContext) -> Sender:
    assert isinstance(context.user, Sender), "the server sets it"
    return context.user
