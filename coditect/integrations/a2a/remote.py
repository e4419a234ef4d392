"""A remote A2A agent whose skills are capabilities of the fleet.

`a2a_agent` makes the agent of the fleet, `RemoteAgent` holds the remote agent's card and connections, and `RemoteCall`
follows one message to the end of its task. Requests go to checked addresses, without redirects, and answers are
bounded. Each error says whether the failed attempt may be followed by another.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from a2a.client import Client, ClientCallContext, ClientConfig, ClientFactory
from a2a.client.auth import AuthInterceptor, CredentialService
from a2a.client.card_resolver import A2ACardResolver
from a2a.types import a2a_pb2 as a2a
from a2a.types.a2a_pb2 import AgentCard, AgentSkill
from a2a.types.a2a_pb2 import TaskState as A2aState
from a2a.utils import errors as a2a_errors
from a2a.utils.constants import TransportProtocol
from a2a.utils.errors import TaskNotFoundError
from google.protobuf.json_format import Error as ProtobufError
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from coditect.agent.context import Context
from coditect.agent.declaration import Agent
from coditect.aio.supervisor import Backoff
from coditect.errors import CoditectError, InputError, Retryable, SetupError
from coditect.integrations.a2a.messages import SCHEMAS, answer_of, parts_of, plain, text_of
from coditect.integrations.described import declaring
from coditect.integrations.http.addresses import AgentLost, AgentRefused, AllowedHosts, AnswerBroken
from coditect.model.limits import Breaker
from coditect.settings.settings import A2A_DEFAULTS, A2aSettings
from coditect.wire.tasks import MAX_BODY_BYTES

TOKEN = "CODITECT_A2A_TOKEN"  # noqa: S105 - a variable's name
AGENT_LOST = "The remote agent went away, or did not answer in time"
MAX_REASON_LENGTH = 2_000
_REFUSALS = (
    a2a_errors.InvalidParamsError,
    a2a_errors.InvalidRequestError,
    a2a_errors.MethodNotFoundError,
    a2a_errors.ContentTypeNotSupportedError,
    a2a_errors.UnsupportedOperationError,
    a2a_errors.VersionNotSupportedError,
    a2a_errors.ExtensionSupportRequiredError,
)
_BROKEN = (ProtobufError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What the SDK raises for an answer that is not valid A2A, beside its own errors."""


class RemoteFailed(Retryable):
    """The error of a task that failed or was canceled at the remote agent, or of the agent's own failure; retryable."""


class RemoteRejected(InputError):
    """The error of a message, a token or a task that the remote agent refuses; the attempt is the last."""


class RemoteAsks(InputError):
    """The error of a task for which the remote agent wants more input, or credentials; the attempt is the last."""


@contextmanager
def judged(url: str) -> Iterator[None]:
    """Translate errors of the A2A SDK, HTTP and parsing, and timeouts, that the block raises into errors of Coditect.

    Raises:
        RemoteRejected: when the agent refuses the request, or the token.
        RemoteFailed: when the agent answers with an error of its own; retryable.
        AgentLost: when the connection broke, or no answer came in time; retryable.
        AnswerBroken: when the answer is not valid A2A; retryable.
    """
    try:
        yield
    except CoditectError:
        raise
    except _REFUSALS as error:
        raise RemoteRejected("The remote agent refuses the message", url=url, reason=_said(error)) from error
    except a2a_errors.A2AError as error:
        raise _of_connection(url, error) from error
    except (TimeoutError, httpx.TransportError) as error:
        raise AgentLost(AGENT_LOST, url=url, reason=_said(error)) from error
    except _BROKEN as error:
        raise AnswerBroken("The remote agent's answer is not valid A2A", url=url, reason=_said(error)) from error


def _of_connection(url: str, error: a2a_errors.A2AError) -> CoditectError:
    """Return Coditect's error for an SDK error, by the HTTP status or connection error that caused it, if any did."""
    match error.__cause__:
        case httpx.HTTPStatusError(response=response) if response.status_code in (401, 403):
            fix = f"set {TOKEN} to a token or key that may use the agent"
            return RemoteRejected("The remote agent wants other credentials", status=response.status_code, fix=fix)
        case httpx.HTTPStatusError(response=response) if 400 <= response.status_code < 500 and (
            response.status_code not in (408, 425, 429)
        ):
            return RemoteRejected("The remote agent refuses the request", url=url, status=response.status_code)
        case httpx.HTTPStatusError(response=response):
            return AnswerBroken("The remote agent answers with a status of no use", status=response.status_code)
        case httpx.TransportError():
            return AgentLost(AGENT_LOST, url=url, reason=_said(error))
        case None if not type(error).__module__.startswith("a2a.client"):
            return RemoteFailed("The remote agent failed", url=url, reason=_said(error))
        case _:
            return AnswerBroken("The remote agent's answer is not valid A2A", url=url, reason=_said(error))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON_LENGTH].encode(errors="backslashreplace").decode()


A2A_CONNECT_SECONDS = 5.0
MAX_A2A_ANSWER_BYTES = MAX_BODY_BYTES
"""The largest answer, and the largest event of a stream: reading data takes microseconds for each number."""
MOST_STREAM_BYTES = 16 * MAX_A2A_ANSWER_BYTES
A2A_HEADERS = {"user-agent": "coditect", "accept-encoding": "identity"}


class CheckedTransport(httpx.AsyncBaseTransport):
    """An httpx transport that connects to allowed IP addresses only, and limits the size of answers."""

    def __init__(self, hosts: AllowedHosts) -> None:
        self._hosts = hosts
        self._inner = httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the first IP address of its host that takes a connection, and return the response.

        Raises:
            AgentRefused: when the host has no address, or takes no connection; nothing was sent.
            InputError: when an address of the host is not allowed.
            AnswerBroken: when the answer is compressed.
            httpx.TransportError: when the connection breaks afterwards.
        """
        url = request.url
        response = await self._hosts.first_that_connects(
            url.host,
            url.port or (443 if url.scheme == "https" else 80),
            lambda address: self._inner.handle_async_request(_to(address, request)),
            httpx.ConnectError,
            httpx.ConnectTimeout,
        )
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            await response.aclose()
            raise AnswerBroken("The answer is compressed, which the request does not accept", encoding=encoding[:50])
        response.headers.pop("set-cookie", None)  # httpx would keep them for all later calls, however many
        assert isinstance(response.stream, httpx.AsyncByteStream)
        streams = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        response.stream = _Bounded(response.stream, MOST_STREAM_BYTES if streams else MAX_A2A_ANSWER_BYTES)
        return response

    async def aclose(self) -> None:
        """Close all connections to the remote agent."""
        await self._inner.aclose()


class _Bounded(httpx.AsyncByteStream):
    """The body of an answer, which fails once it, or one of its events, is larger than allowed."""

    def __init__(self, stream: httpx.AsyncByteStream, most_bytes: int) -> None:
        self._stream = stream
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        whole = event = 0
        async for part in self._stream:
            whole += len(part)
            end = max(part.rfind(b"\n\n"), part.rfind(b"\n\r\n"))
            event = event + len(part) if end < 0 else len(part) - end
            if whole > self._most_bytes or event > MAX_A2A_ANSWER_BYTES:
                raise AnswerBroken(
                    "The answer is too large", most_bytes=MAX_A2A_ANSWER_BYTES, most_of_stream=MOST_STREAM_BYTES
                )
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def checked_client(hosts: AllowedHosts, *, token: str | None = None) -> httpx.AsyncClient:
    """Return an HTTP client for a remote agent, not opened yet; each request has the token, if there is one.

    The caller bounds how long an answer may take.
    """
    return httpx.AsyncClient(
        transport=CheckedTransport(hosts),
        timeout=httpx.Timeout(None, connect=A2A_CONNECT_SECONDS),
        headers=A2A_HEADERS | ({"authorization": f"Bearer {token}"} if token else {}),
        follow_redirects=False,
        trust_env=False,
    )


def _to(address: str, request: httpx.Request) -> httpx.Request:
    """Return a copy of a request for one IP address of its host; a TLS connection serves no other request."""
    headers = httpx.Headers(request.headers)
    if request.url.scheme == "https":
        headers["connection"] = "close"
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )


log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
"""How long a question about a task may take."""
SILENCE_SECONDS = 60.0
"""How long a stream may be silent before the task is asked for."""
RETRY_CONNECT_SECONDS = 30.0
"""How long a message waits for an agent that takes no connection."""
REMOTE_CANCEL_SECONDS = 5.0
RECONNECT_PAUSES = Backoff(first=0.1, longest=5.0)
"""The pauses between questions about a task that runs."""
MOST_FAILURES = 5
"""How many questions in a row may find the agent away before the attempt fails."""
LONGEST_PROGRESS = 2_000
MOST_ITEMS = 10_000
"""How many updates a stream may have."""
Progress = Callable[[float, str], Awaitable[None]]
"""A function that is called with the share of the work that is done, 0 to 1, and a note."""

_ENDED = frozenset(
    {
        A2aState.TASK_STATE_COMPLETED,
        A2aState.TASK_STATE_FAILED,
        A2aState.TASK_STATE_CANCELED,
        A2aState.TASK_STATE_REJECTED,
    }
)
_ASKS = frozenset({A2aState.TASK_STATE_INPUT_REQUIRED, A2aState.TASK_STATE_AUTH_REQUIRED})


class RemoteCall:
    """A call of a remote A2A agent: one message that is sent, and the task that it starts, followed to its end."""

    def __init__(self, client: Client, url: str, progress: Progress, *, streaming: bool) -> None:
        """Take an open A2A client; `progress` is called at each status update of the task while it works."""
        self._client = client
        self._url = url
        self._progress = progress
        self._sending = ClientCallContext(timeout=SILENCE_SECONDS if streaming else None)
        self._task_id = ""

    async def run(self, request: a2a.SendMessageRequest) -> Any:
        """Send the message, and return the value of the answer: of a message at once, of a task when it has ended.

        Raises:
            CoditectError: the errors of `RemoteAgent.call`.
        """
        answer: a2a.Task | a2a.Message | None = None
        try:
            answer = await self._sent(request)
        except AgentLost:
            if not self._task_id:
                raise
            log.info("A stream of a remote agent broke; its task is asked for", extra={"task": self._task_id})
        if isinstance(answer, a2a.Message):
            return answer_of(answer.parts)
        return _end(answer if answer is not None and _settled(answer) else await self._ended(), self._url)

    async def cancel(self) -> None:
        """Ask the remote agent to cancel the task if its id is known, for up to five seconds; only log a failure."""
        if not self._task_id:
            return
        try:
            with judged(self._url):
                async with asyncio.timeout(REMOTE_CANCEL_SECONDS):
                    await self._client.cancel_task(a2a.CancelTaskRequest(id=self._task_id))
        except CoditectError as error:
            log.info("A remote task was not canceled", extra={"task": self._task_id, "reason": str(error)[:300]})

    async def _sent(self, request: a2a.SendMessageRequest) -> a2a.Task | a2a.Message | None:
        """Send the message, again for up to 30 s while the agent takes no connection, such as during a restart."""
        now, pauses = asyncio.get_running_loop().time, RECONNECT_PAUSES.pauses()
        until = now() + RETRY_CONNECT_SECONDS
        while True:
            try:
                with judged(self._url):
                    return await self._send(request)
            except AgentRefused:
                pause = next(pauses)
                if self._task_id or now() + pause > until:
                    raise
            await asyncio.sleep(pause)

    async def _send(self, request: a2a.SendMessageRequest) -> a2a.Task | a2a.Message | None:
        """Send the message and read the answers; return the last answer if it is a whole task or message, else None."""
        whole: a2a.Task | a2a.Message | None = None
        items = 0
        async for answer in self._client.send_message(request, context=self._sending):
            items += 1
            if items > MOST_ITEMS:
                raise AnswerBroken("The remote agent's stream does not end", url=self._url, updates=MOST_ITEMS)
            if answer.HasField("message"):
                return answer.message
            if answer.HasField("task"):
                whole = answer.task
                self._task_id = self._task_id or answer.task.id
                continue
            whole = None  # what a stream tells in parts is asked for as a whole
            update = answer.status_update
            self._task_id = self._task_id or update.task_id or answer.artifact_update.task_id
            if update.status.state == A2aState.TASK_STATE_WORKING:
                await self._tell(update)
        if not self._task_id:
            raise AnswerBroken("The remote agent's answer has neither a task nor a message", url=self._url)
        return whole

    async def _tell(self, update: a2a.TaskStatusUpdateEvent) -> None:
        share = plain(update.metadata).get("share")
        known = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
        await self._progress(float(share) if known else 0.0, text_of(update.status.message.parts)[:LONGEST_PROGRESS])

    async def _ended(self) -> a2a.Task:
        """Poll the task until it has ended or waits for its caller; up to four polls in a row may not reach the agent.

        Raises:
            AgentLost: when the agent stays away, or does not know the task any more.
        """
        asked, failures = 0, 0
        while True:
            try:
                with judged(self._url):
                    async with asyncio.timeout(REQUEST_SECONDS):
                        task = await self._client.get_task(a2a.GetTaskRequest(id=self._task_id))
                failures = 0
                if _settled(task):
                    return task
            except (AgentLost, AgentRefused) as error:
                failures += 1
                if failures >= MOST_FAILURES:
                    raise AgentLost("The remote agent stays away", url=self._url, task=self._task_id) from error
            except RemoteFailed as error:
                if isinstance(error.__cause__, TaskNotFoundError):
                    raise AgentLost("The remote agent forgot the task", url=self._url, task=self._task_id) from error
                raise
            asked += 1
            await asyncio.sleep(RECONNECT_PAUSES.pause(asked))


def _settled(task: a2a.Task) -> bool:
    return task.status.state in _ENDED or task.status.state in _ASKS


def _end(task: a2a.Task, url: str) -> Any:
    """Return the value of a completed task; raise for one that ended otherwise, or waits for its caller.

    Raises:
        RemoteFailed: when the task failed, or was canceled there.
        RemoteRejected: when the task was rejected.
        RemoteAsks: when the task waits for something.
    """
    state = task.status.state
    if state == A2aState.TASK_STATE_COMPLETED:
        parts = [part for artifact in task.artifacts for part in artifact.parts]
        return answer_of(parts or task.status.message.parts)
    reason = text_of(task.status.message.parts)[:LONGEST_PROGRESS] or "it does not say why"
    facts = {"url": url, "task": task.id[:200], "reason": reason}
    if state == A2aState.TASK_STATE_REJECTED:
        raise RemoteRejected("The remote agent rejected the task", **facts)
    if state == A2aState.TASK_STATE_INPUT_REQUIRED:
        fix = "give all of it with the task: a capability takes one input"
        raise RemoteAsks("The remote agent wants more input", **facts, fix=fix)
    if state == A2aState.TASK_STATE_AUTH_REQUIRED:
        raise RemoteAsks("The remote agent wants an authorization", **facts, fix="grant it at the remote agent")
    ended = "failed" if state == A2aState.TASK_STATE_FAILED else "was canceled there"
    raise RemoteFailed(f"The task {ended}", **facts)


CARD_SECONDS = 30.0
SKILL = "skillId"
"""The name in a message's metadata under which it says which skill is wanted, as many agents read it."""


class RemoteAgent:
    """A remote A2A agent, known by its URL, which can be called inside of the block of `open`."""

    def __init__(self, url: str, *, settings: A2aSettings = A2A_DEFAULTS) -> None:
        """Take the URL below which the agent card is found.

        Raises:
            InputError: when it is no URL of http or https, or has a user, a query or a fragment.
        """
        self._hosts = AllowedHosts(("*",), settings.private, "a2a")
        self.url = self._hosts.check(url)
        self._token = settings.token
        self._client: Client | None = None
        self._streaming = False

    async def card(self) -> a2a.AgentCard:
        """Ask the remote agent for its card, and return it after a check that the agent can be called.

        Raises:
            AgentRefused: when the agent takes no connection; retryable.
            InputError: when its address is not allowed.
            AgentLost: when the connection breaks, or no card comes within 30 s; retryable.
            AnswerBroken: when the answer is no card; retryable.
            RemoteRejected: when the agent refuses the request, or the token.
            SetupError: when the agent speaks no JSON-RPC, or not where the token may go.
        """
        async with checked_client(self._hosts, token=self._token) as http:
            with judged(self.url):
                async with asyncio.timeout(CARD_SECONDS):
                    card = await A2ACardResolver(http, self.url).get_agent_card()
        self._check(card)
        return card

    @asynccontextmanager
    async def open(self, card: a2a.AgentCard) -> AsyncIterator[None]:
        """Open an HTTP client for calls to the agent that a checked card describes, and close it after the block.

        The agent can be opened again afterwards, also on another event loop.
        """
        self._streaming = card.capabilities.streaming
        async with checked_client(self._hosts, token=self._token) as http:
            factory = ClientFactory(ClientConfig(httpx_client=http, polling=not self._streaming))
            self._client = factory.create(card, [AuthInterceptor(_OneToken(self._token))])
            try:
                yield
            finally:
                self._client = None

    async def call(self, skill: str, value: Any, message_id: str, progress: Progress) -> Any:
        """Send a value to a skill and return the result of its task; cancel the task if it asks back, or if canceled.

        A task that asks back wants more input, or an authorization. So does an invalid answer.

        Raises:
            RemoteFailed: when the task failed; retryable.
            RemoteRejected: when the agent refuses the message, the token or the task.
            RemoteAsks: when the task waits for more input, or an authorization; it is canceled.
            AgentRefused: when the agent takes no connection for 30 s; retryable.
            AgentLost: when the agent goes away, or forgets the task; retryable.
            AnswerBroken: when an answer is not valid A2A; retryable.
        """
        if self._client is None:
            raise SetupError("The remote agent is not open", url=self.url)
        message = a2a.Message(
            message_id=message_id,
            role=a2a.Role.ROLE_USER,
            parts=parts_of(value),
            metadata=ParseDict({SKILL: skill}, Struct()),
        )
        call = RemoteCall(self._client, self.url, progress, streaming=self._streaming)
        try:
            return await call.run(a2a.SendMessageRequest(message=message))
        except asyncio.CancelledError:
            await asyncio.shield(call.cancel())
            raise
        except (RemoteAsks, AnswerBroken):
            await call.cancel()
            raise

    def _check(self, card: a2a.AgentCard) -> None:
        """Check that a card offers JSON-RPC at valid URLs, and, if a token is sent, only at the agent's own address."""
        places = [
            interface.url
            for interface in card.supported_interfaces
            if interface.protocol_binding == TransportProtocol.JSONRPC
        ]
        if not places:
            bindings = sorted({interface.protocol_binding[:50] for interface in card.supported_interfaces})
            raise SetupError("The remote agent speaks no JSON-RPC", url=self.url, bindings=bindings)
        for place in places:
            try:
                self._hosts.check(place)
            except InputError as error:
                raise SetupError("The agent card names no URL", url=self.url, given=place[:200]) from error
            if self._token is not None and urlsplit(place)[:2] != urlsplit(self.url)[:2]:
                fix = f"give the agent's own address, or unset {TOKEN}: the token goes to no other host"
                raise SetupError("The agent card names another host", url=self.url, given=place[:200], fix=fix)


class _OneToken(CredentialService):
    """The credentials for calls to a remote agent: one token, whichever security scheme the agent's card names."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def get_credentials(self, security_scheme_name: str, context: ClientCallContext | None) -> str | None:
        """Return the token of the settings, whichever security scheme is asked for; None when they have none."""
        return self._token


SKILL_TIMEOUT = "5m"
MOST_SKILLS = 200
_UNFIT = re.compile(r"[^a-z0-9_.-]+")
_JOINTS = re.compile(r"[-_]*\.[-_.]*")


async def a2a_agent(
    name: str,
    url: str,
    *,
    prefix: str | None = None,
    slots: int = 8,
    timeout: str = SKILL_TIMEOUT,
    settings: A2aSettings = A2A_DEFAULTS,
    breaker: Breaker | None = None,
) -> Agent:
    """Return an agent with a capability for each skill of a remote A2A agent, such as `partner.translate`.

    The remote agent is asked for its card now. `prefix` comes before each skill's id, the agent's name by default;
    `timeout` bounds one task. The breaker, `a2a:NAME` by default, opens when the remote agent is away or answers what
    is not valid A2A; tasks then wait, and no attempt of theirs counts.

    Raises:
        SetupError: when the agent cannot be called, has no skills, or a skill cannot be declared.
        CoditectError: the errors of `RemoteAgent.card`.
    """
    remote = RemoteAgent(url, settings=settings)
    card = await remote.card()
    guard = breaker or Breaker(f"a2a:{name}", on=(AgentRefused, AgentLost, AnswerBroken))
    skills = _skills(card, remote.url, prefix or name)

    @asynccontextmanager
    async def lifespan(_: Agent) -> AsyncIterator[None]:
        async with remote.open(card):
            yield

    agent = Agent(name, slots=slots, lifespan=lifespan, description=f"The skills of an A2A agent: {remote.url}")
    schemas = _schemas(card)
    for capability, skill in skills.items():
        declare = agent.capability(
            capability, timeout=timeout, description=(skill.description or skill.name)[:1_000], breaker=guard
        )
        declare(_handler(remote, skill.id, schemas.get(skill.id)))
    return agent


def _skills(card: AgentCard, url: str, prefix: str) -> dict[str, AgentSkill]:
    """Return the skills of a card, each under the name of the capability that it becomes."""
    if not 0 < len(card.skills) <= MOST_SKILLS:
        fix = "the agent may show them to callers with a token only: CODITECT_A2A_TOKEN"
        raise SetupError("A remote agent has 1 to 200 skills", url=url, skills=len(card.skills), fix=fix)
    skills: dict[str, AgentSkill] = {}
    for skill in card.skills:
        name = f"{prefix}.{_JOINTS.sub('.', _UNFIT.sub('-', skill.id.lower())).strip('-_.') or 'skill'}"
        if (other := skills.setdefault(name, skill)) is not skill:
            ids = [other.id[:100], skill.id[:100]]
            raise SetupError("Two skills of a remote agent have one name", capability=name[:200], skills=ids)
    return skills


def _schemas(card: AgentCard) -> Mapping[str, Any]:
    """Return the JSON Schemas of skills by skill id; empty unless the card has Coditect's extension with them."""
    found = next((extension for extension in card.capabilities.extensions if extension.uri == SCHEMAS), None)
    try:
        return {} if found is None else plain(found.params)
    except InputError as error:
        raise SetupError("The schemas of the agent card are broken", reason=str(error)) from error


def _handler(remote: RemoteAgent, skill: str, schemas: Any) -> Callable[..., Any]:
    async def call(value: Any, ctx: Context) -> Any:
        # An id of its own for each attempt: an agent that knows messages would give a failed task again.
        return await remote.call(skill, value, f"{ctx.task_id}/{uuid4()}", ctx.progress)

    shapes = schemas if isinstance(schemas, dict) else {}
    return declaring(call, shapes.get("input"), shapes.get("output"))
