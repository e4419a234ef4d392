"""The fleet as an A2A agent: a message without a task's id starts a durable task, which any API process finds by id.

The control plane keeps the tasks, so nothing is lost with the process that took a message, and none of the SDK's stores
of tasks is needed. A task's context is a label of its workflow; a message that is sent again is the same task.

The API's routes use its endpoints: the agent card, and JSON-RPC with its streams.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from a2a.auth.user import User
from a2a.server.context import ServerCallContext
from a2a.server.events.event_queue import Event as A2aEvent
from a2a.server.jsonrpc_models import JSONParseError
from a2a.server.request_handlers.request_handler import RequestHandler, validate_request_params
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes.agent_card_routes import create_agent_card_routes
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types import a2a_pb2 as a2a
from a2a.types.a2a_pb2 import Part, SendMessageRequest
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_1_0, VERSION_HEADER
from a2a.utils.errors import (
    A2AError,
    ContentTypeNotSupportedError,
    InternalError,
    InvalidParamsError,
    InvalidRequestError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
    VersionNotSupportedError,
)

from coditect.aio.clock import SystemClock
from coditect.client.client import Client
from coditect.client.handle import DURABLE_NODE, Handle, durable_definition, durable_id
from coditect.client.options import Options
from coditect.errors import CoditectError, InputError, InvalidTask, NotFound
from coditect.integrations.a2a.messages import fleet_card, media_types, plain, skilled, text_of, value_of
from coditect.integrations.a2a.tasks import (
    A2A_KIND,
    ASKING,
    CONTEXT,
    ENDED,
    follow,
    handle_of,
    list_tasks,
    read_task,
    settled,
)
from coditect.integrations.tools import OfferedCapabilities, admits, is_object, own_key, resolved
from coditect.model.capability import CapabilitySpec, nearest_names
from coditect.operations.connections import Connections
from coditect.operations.fleet import find_agents
from coditect.settings.addresses import without_passwords
from coditect.settings.settings import ApiSettings
from coditect.wire.json import loads

log = logging.getLogger(__name__)

MAX_ERROR_LENGTH = 4_000


@contextmanager
def told() -> Iterator[None]:
    """Translate every error that the block raises into an A2A error.

    Raises:
        TaskNotFoundError: for a task that the fleet does not have.
        InvalidParamsError: for a mistake of the caller.
        InternalError: for any other error of the fleet, and without its text for an unexpected one, which is logged.
    """
    try:
        yield
    except A2AError:
        raise
    except CoditectError as error:
        raise as_a2a(error) from error
    except Exception as error:  # the boundary of a request: the SDK would answer with the exception's text
        log.error("An A2A request failed unexpectedly", exc_info=error)
        raise InternalError("The API failed; its log has the reason") from error


def as_a2a(error: CoditectError) -> A2AError:
    """Return the A2A error for an error of the fleet; its data say if a repetition may help and, if known, a remedy."""
    kinds = ((NotFound, TaskNotFoundError), (InputError, InvalidParamsError))
    kind = next((a2a for ours, a2a in kinds if isinstance(error, ours)), InternalError)
    facts = {name: without_passwords(str(fact)) for name, fact in error.facts.items() if name != "traceback"}
    said = "".join(f"; {name}: {fact}" for name, fact in facts.items())
    data = {"retryable": str(error.retryable).lower()} | ({"fix": facts["fix"]} if "fix" in facts else {})
    return kind(f"{without_passwords(error.sentence)}{said}"[:MAX_ERROR_LENGTH], data=data)


SKILL = "skillId"
"""The name in a message's metadata under which a client says which skill it wants; A2A 1.0 has no field for it."""
MAX_NAMED_SKILLS = 10


def skill_of(request: SendMessageRequest, skills: Mapping[str, CapabilitySpec]) -> CapabilitySpec:
    """Return the capability that a message's metadata name, or, if they name none, the fleet's only one.

    Raises:
        InputError: when no skill is named and there are several, or no living agent offers the named one.
    """
    named = plain(request.message.metadata).get(SKILL) or plain(request.metadata).get(SKILL)
    if named is None and len(skills) == 1:
        return next(iter(skills.values()))
    offered = sorted(skills)[:MAX_NAMED_SKILLS]
    if named is None:
        fix = f'"metadata": {{"{SKILL}": "..."}} in the message, with an id of the agent card'
        raise InputError("The message names no skill", skills=offered, fix=fix)
    if (found := skills.get(str(named))) is None:
        near = list(nearest_names(str(named), skills)) or offered
        raise InputError("No living agent offers this skill", skill=str(named)[:200], nearest=near, fix="one of these")
    return found


def check_wishes(request: SendMessageRequest, spec: CapabilitySpec) -> None:
    """Check that the fleet can answer in a media type that the sender takes, and without push notifications.

    Raises:
        ContentTypeNotSupportedError: when the sender accepts none of the skill's media types.
        PushNotificationNotSupportedError: when the sender wants push notifications.
    """
    wishes, modes = request.configuration, media_types(spec.output_schema)
    if wishes.HasField("task_push_notification_config"):
        raise no_push()
    accepted = {mode.partition(";")[0].strip().lower() for mode in wishes.accepted_output_modes}
    ranges = {"*/*", *modes, *(f"{mode.partition('/')[0]}/*" for mode in modes)}
    if accepted and not accepted & ranges:
        fix = f"accept {' or '.join(modes)}"
        raise ContentTypeNotSupportedError(f"The skill answers in none of the accepted media types; {fix}")


def input_of(parts: Sequence[Part], spec: CapabilitySpec) -> Any:
    """Return a task's input from a message's parts; a text may be read as JSON, or be an object's one required field.

    A text that the capability's schema does not admit is read as JSON. If it is no JSON, it is the only required field.

    Raises:
        InputError: when a part is a file or a link, or there are none.
    """
    value = value_of(parts)
    if not isinstance(value, str) or admits(spec.input_schema, value):
        return value
    try:
        return loads(value.encode())
    except InvalidTask:
        schema = resolved(spec.input_schema)
        required = schema.get("required")
        if is_object(schema) and isinstance(required, list) and len(required) == 1:
            return {str(required[0]): value}
        return value


def no_push() -> PushNotificationNotSupportedError:
    """Return the error for a request of push notifications."""
    fix = "follow the task by SubscribeToTask or GetTask, or have a webhook of the API post the task's events"
    return PushNotificationNotSupportedError(f"The fleet sends no push notifications; {fix}", data={"fix": fix})


LONGEST_WAIT = "10m"
"""How long a message waits for the end of its task; then the task is answered as it is."""
LEDGER_CANCEL_SECONDS = 5.0
"""How long a cancel waits for the end of the task; then the task is answered as it is."""
ADDRESS = "coditect.address"
"""The name under which the context of a call has the address at which the sender reaches the agent."""
DURABLE = Options(durable=True)
DECISIONS: Mapping[str, bool] = {"grant": True, "deny": False}
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
                return await settled(handle, timeout=LEDGER_CANCEL_SECONDS)

    async def on_list_tasks(self, params: a2a.ListTasksRequest, context: ServerCallContext) -> a2a.ListTasksResponse:
        """Return a page of the tasks that A2A clients sent, the latest first."""
        with told():
            async with self._opened.fleet() as client:
                return await list_tasks(client, params)

    async def _refuse_push(self, params: Any, context: ServerCallContext) -> Any:
        """Refuse a request about push notifications, which are not sent."""
        raise no_push()

    on_create_task_push_notification_config = _refuse_push
    on_get_task_push_notification_config = _refuse_push
    on_list_task_push_notification_configs = _refuse_push
    on_delete_task_push_notification_config = _refuse_push

    async def _taken(self, client: Client, request: a2a.SendMessageRequest, context: ServerCallContext) -> Handle:
        """Submit a message's task once, or answer the approval of the task that the message names; return a handle."""
        message, sender = request.message, _sender(context)
        if message.task_id:
            return await self._answered(client, message, sender)
        spec = skill_of(request, await self.skills())
        check_wishes(request, spec)
        clock = SystemClock()
        value = input_of(message.parts, spec)
        run = await client.start(
            durable_definition(spec.name, value, DURABLE, now_ms=clock.now_ms()),
            idempotency_key=own_key("a2a", sender.name, message.message_id, [spec.name, value]),
            labels={CONTEXT: message.context_id or clock.new_id(), **A2A_KIND},
        )
        return client.tasks.get(durable_id(run.id))

    async def _answered(self, client: Client, message: a2a.Message, sender: Sender) -> Handle:
        """Grant or deny, as the message's text says, the approval for which a task waits; return the task's handle."""
        handle = handle_of(client, message.task_id)
        word = text_of(message.parts).strip().lower()
        if (await read_task(handle)).status.state != ASKING or word not in DECISIONS:
            fix = "send a message without taskId, in the same context, for a new task"
            sentence = f"The task {message.task_id[:200]} takes no more messages; {fix}"
            raise UnsupportedOperationError(sentence, data={"fix": fix})
        answer = handle.run.grant if DECISIONS[word] else handle.run.deny
        key = self._opened.environ.get("CODITECT_APPROVAL_KEY") or None
        await answer(DURABLE_NODE, by=sender.name, comment="by A2A", key=key)
        return handle


def _check_role(request: a2a.SendMessageRequest, context: ServerCallContext) -> None:
    """Check that the sender may send a message: an operator for a new task, an approver for one that names a task."""
    _sender(context).check("approver" if request.message.task_id else "operator")


def _sender(context: ServerCallContext) -> Sender:
    assert isinstance(context.user, Sender), "the server sets it"
    return context.user


CACHED = "private, max-age=10"
"""How long a client may keep a card: agents come and go."""
_VERSION_1 = re.compile(r"1(\.\d{1,9}){0,2}", re.ASCII)


class A2aEndpoints:
    """The endpoints of a fleet's A2A agent; they take requests of Starlette whose senders the API has checked."""

    def __init__(self, opened: Connections, settings: ApiSettings) -> None:
        self._settings = settings
        self._requests = FleetRequests(opened, settings)
        self._dispatcher = JsonRpcDispatcher(self._requests, _SenderContexts())

    async def card(self, request: Any, address: str, *, whole: bool) -> Any:
        """Answer with the agent card, which names `address` as the agent's URL; unless `whole`, without the skills."""
        skills = await self._requests.skills() if whole else {}
        card = fleet_card(skills, self._settings, url=address)
        (route,) = create_agent_card_routes(card, cache_control=CACHED)
        return await route.endpoint(request)

    async def call(self, request: Any, address: str, name: str, check: Callable[[str], None]) -> Any:
        """Answer the JSON-RPC request that `name` sent to a URL; `check` raises if that sender lacks a given role."""
        request.state.a2a = (address, Sender(name, check))
        return await self._dispatcher.handle_requests(request)

    async def unsupported(self, request: Any) -> dict[str, Any] | None:
        """Return the JSON-RPC error for a request that is no JSON, or of another version of the protocol than 1.

        The version is checked before the methods and fields, which have other names in another version.
        """
        try:
            body = loads(await request.body())
        except InvalidTask as error:
            return build_error_response(None, JSONParseError(message=str(error)))
        version = request.headers.get(VERSION_HEADER) or PROTOCOL_VERSION_0_3
        if _VERSION_1.fullmatch(version.strip()):
            return None
        found = body.get("id") if isinstance(body, dict) else None
        number = found if isinstance(found, str | int) and not isinstance(found, bool) else None
        fix = f"send the header {VERSION_HEADER}: {PROTOCOL_VERSION_1_0}"
        sentence = f"The version {version[:20]!r} of A2A is not served; {fix}"
        return build_error_response(number, VersionNotSupportedError(sentence, data={"fix": fix}))

    def refusal(self, sentence: str) -> dict[str, Any]:
        """Return the JSON-RPC error for a request that is refused unread, such as one that is too large."""
        return build_error_response(None, InvalidRequestError(sentence))


class _SenderContexts(DefaultServerCallContextBuilder):
    """The builder of the SDK's call contexts, which adds the sender that the API has let in."""

    def build(self, request: Any) -> ServerCallContext:
        """Return the SDK's call context of a request, with the address at which the sender reached the agent."""
        context = super().build(request)
        context.state[ADDRESS] = request.state.a2a[0]
        request.state.call = context.state  # where the dispatcher notes the method, which the audit line says
        return context

    def build_user(self, request: Any) -> User:
        """Return the sender of a request, whom the API has let in before."""
        sender: Sender = request.state.a2a[1]
        return sender
