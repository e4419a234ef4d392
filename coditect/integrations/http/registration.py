"""What an HTTP agent registers, and how its registration becomes an ordinary `Agent`.

Its handlers see the HTTP agent as an `AgentLink`: they post a task, await its answer and judge it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Annotated, Any
from uuid import NAMESPACE_OID, UUID, uuid4, uuid5

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coditect.agent.context import Context
from coditect.agent.declaration import MOST_QUEUED, Agent
from coditect.agent.handler import HandedBack
from coditect.agent.mailbox import ANSWERED_LATER
from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError, InputError, SetupError
from coditect.integrations.described import check_of, declaring
from coditect.integrations.http.addresses import (
    ActionFailed,
    AgentLost,
    AgentRefused,
    AllowedHosts,
    AnswerBroken,
    InputRefused,
)
from coditect.integrations.http.calls import AgentCalls, HttpAnswer
from coditect.integrations.http.messages import (
    TOPIC,
    WORDS,
    AgentRequestEvent,
    AgentResponseEvent,
    AnswerStatus,
    Callbacks,
    Expected,
    heard,
    parameters_of,
    read_answer,
)
from coditect.model.capability import LONGEST_SECONDS, CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.limits import Breaker, BreakerScope
from coditect.model.registration import Registration
from coditect.model.retry import RETRY_DELAYS_MS, RetryAfter
from coditect.registry.document import encode_registration
from coditect.wire.routing import is_others_name
from coditect.wire.workflow_tasks import HandoffOffer

log = logging.getLogger(__name__)

REQUEST_PATH = "/agent-request"
ATTEMPT_NAMESPACE = uuid5(NAMESPACE_OID, "coditect.attempt")
"""The namespace of the ids of attempts."""
HEAR_SECONDS = 7
"""How long an HTTP agent may take for a request that is no task: less than an agent has to decide about a handoff."""
REFUSAL_SECONDS = 1.0
"""How long a post may take to be refused after its agent was found gone: a refused post is no attempt."""
MAX_RETRY_PAUSE_SECONDS = RETRY_DELAYS_MS[-1] / 1000
_UNKNOWN = r"(?:unknown|unsupported|unrecogni[sz]ed|no such)"
_IS_UNKNOWN = r"(?:is |was )?(?:unknown|unsupported|not[ _](?:known|supported|found|implemented|recogni[sz]ed))"
UNKNOWN_ACTION = (
    r"\W*(?:\w*error\W+)?(?:"
    rf"(?:{_UNKNOWN}[ _-]?action|action[ _]{_IS_UNKNOWN})(?:\W*|\W+{{action}}\b.*)"
    rf"|(?:the )?action\W+{{action}}\W+{_IS_UNKNOWN}\b.*)"
)
"""The whole error of an agent that does not know an action: another attempt would get the same answer."""
MAX_SHOWN_ERROR = 500
"""Number of characters of an answer in an error message."""


@dataclass(eq=False, slots=True)
class AgentLink:
    """The calls of a bridge to one HTTP agent, from the agent's start until the agent is gone."""

    base_url: str
    calls: AgentCalls
    callbacks: Callbacks
    background: Supervisor
    _: KW_ONLY
    callback_url: str
    """The URL below which answers by callback come."""
    doubt: Callable[[], None]
    """Is called when a connection is refused or lost."""
    deferred: int = 0
    """The number of attempts whose answer is to come by callback."""
    _gone: str = ""
    """Why the agent is gone; empty while it is there."""
    _open: set[asyncio.Future[AgentResponseEvent]] = field(default_factory=set)

    def end(self, reason: str) -> None:
        """Let the attempts under way fail, since the agent is gone; tasks that come later go back to their queues."""
        self._gone = reason
        for answer in self._open:
            if not answer.done():
                answer.set_exception(AgentLost("The agent went away before it answered", reason=reason))

    async def hear(self, action: str, agent_id: AgentId, data: Any) -> None:
        """Post a broadcast's data, once; a failure is only logged."""
        try:
            await self.ask(action, agent_id, data)
        except (CoditectError, TimeoutError) as error:
            log.info("An HTTP agent did not take what was sent to it", extra={"action": action, "reason": str(error)})

    async def ask(self, action: str, agent_id: AgentId, data: Any, *, source: str = "") -> Any:
        """Post a request that is no task, once; return the result of the answer, which is None if it comes later (202).

        Raises:
            CoditectError: the errors of `act`, when there is no answer, or the answer is an error.
            TimeoutError: when the agent did not answer in time.
        """
        event_id = uuid4()
        event = AgentRequestEvent(
            event_id=event_id,
            created_at=datetime.now(UTC),
            source_agent=source,
            target_agent=agent_id,
            action=action,
            parameters=parameters_of(data),
            callback_url=None,
            priority="medium",
            timeout_seconds=HEAR_SECONDS,
            correlation_id=None,
        )
        async with asyncio.timeout(HEAR_SECONDS):
            answer = _judged(
                await self.calls.post(self.base_url + REQUEST_PATH, event.model_dump_json().encode()), str(event_id)
            )
            return None if answer is None else _result(answer, action)

    async def act(self, value: Any, ctx: Context, *, timeout_seconds: float) -> Any:
        """Post a task as one attempt, and return the result that the agent answers.

        Raises:
            HandedBack: when the agent takes no connection, so that the attempt does not count.
            AgentLost: when the agent went away before it answered; retryable, as are the next three.
            AnswerBroken: when the answer is invalid.
            ActionFailed: when the agent answered with an error.
            RetryAfter: when the agent asked for another attempt later, by 429 or 503.
            InputRefused: when the agent refused the input, or does not know the action.
            TimeoutError: when the agent answered that its time was over.
        """
        if self._gone:
            raise HandedBack
        event_id = uuid5(ATTEMPT_NAMESPACE, f"{ctx.task_id}.{ctx.fence}")
        with self.callbacks.expect(str(event_id), ctx.agent_id) as expected:
            event = self._event(value, ctx, expected, timeout_seconds)
            self._open.add(expected.answer)
            try:
                answer = await self._answer(event, expected, ctx.trace)
            except AgentRefused as error:
                self.doubt()
                raise HandedBack from error
            except AgentLost:
                self.doubt()
                raise
            finally:
                self._open.discard(expected.answer)
        return _result(answer, ctx.capability)

    def _event(self, value: Any, ctx: Context, expected: Expected, timeout_seconds: float) -> bytes:
        event = AgentRequestEvent(
            event_id=UUID(expected.event_id),
            created_at=datetime.now(UTC),
            source_agent=ctx.requester,
            target_agent=ctx.agent_id,
            action=ctx.capability,
            parameters=parameters_of(value),
            callback_url=f"{self.callback_url}/{expected.token}",
            priority=WORDS[ctx.priority],
            timeout_seconds=max(1, int(ctx.seconds_left(timeout_seconds))),
            correlation_id=ctx.task_id,
        )
        return event.model_dump_json().encode()

    async def _answer(self, event: bytes, expected: Expected, trace: Mapping[str, str]) -> AgentResponseEvent:
        """Post an attempt's request; return the answer in the HTTP response or by callback, whichever comes first."""
        call = self.calls.post(self.base_url + REQUEST_PATH, event, trace)
        posting = self.background.start(call, name="agent request", awaited=True)
        try:
            await asyncio.wait((posting, expected.answer), return_when=asyncio.FIRST_COMPLETED)
            if not expected.answer.done():
                answer = _judged(posting.result(), expected.event_id)
                if answer is not None:
                    return answer
            self.deferred += 1
            try:
                return await expected.answer
            except AgentLost:
                await asyncio.wait((posting,), timeout=REFUSAL_SECONDS)
                if posting.done() and not posting.cancelled():
                    answer = _judged(posting.result(), expected.event_id)
                    if answer is not None:
                        return answer
                raise
            finally:
                self.deferred -= 1
        finally:
            posting.cancel()
            if posting.done() and not posting.cancelled():
                posting.exception()  # of a request that the callback overtook, nobody else asks


def _judged(answer: HttpAnswer, event_id: str) -> AgentResponseEvent | None:
    """Return the answer that an HTTP response carries, or None when it is to come by callback (status 202).

    Raises:
        CoditectError: the errors of `AgentLink.act`.
    """
    if answer.status == 200:
        return read_answer(answer.body, event_id)
    if answer.status == 202:
        return None
    facts = {"status": answer.status, "answer": answer.body[:MAX_SHOWN_ERROR].decode(errors="replace")}
    if answer.status in (400, 422):
        raise InputRefused("The agent refused the input", **facts)
    pause = answer.pause_seconds(limit=MAX_RETRY_PAUSE_SECONDS) if answer.status in (429, 503) else None
    if pause is not None:
        raise RetryAfter(pause, f"The agent asked for another attempt later, by {answer.status}")
    fix = "answer 200 with an AgentResponseEvent, or 202 and post it to callback_url later"
    raise AnswerBroken("The agent answered with another status", **facts, fix=fix)


def _result(answer: AgentResponseEvent, action: str) -> Any:
    if answer.status is AnswerStatus.SUCCESS:
        return answer.result
    reason = str(answer.error)[:MAX_SHOWN_ERROR] if answer.error is not None else ""
    if answer.status is AnswerStatus.TIMEOUT:
        raise TimeoutError(f"The agent ran out of time. {reason}".strip())
    unknown = re.compile(UNKNOWN_ACTION.format(action=re.escape(action)), re.IGNORECASE | re.DOTALL)
    said = answer.error.values() if isinstance(answer.error, dict) else (answer.error,)
    if any(isinstance(text, str) and unknown.fullmatch(text[:MAX_SHOWN_ERROR]) for text in said):
        raise InputRefused("The agent does not know the action", action=action, error=reason)
    raise ActionFailed("The agent failed", error=reason)


BASE_URL = "base_url"
"""The key of an HTTP agent's URL in the metadata of its registration."""
AGENT_NAME = "agent_name"
"""The key of the name, as the agent gave it, in the metadata of its registration."""
REGISTERED_BY = "registered_by"
"""The key, in the metadata, of the name of the API key that registered the agent, unless it has the role admin."""
BROADCASTS = "broadcasts"
"""The key, in the metadata, of the topics of broadcasts that an HTTP agent listens to, with commas or as a list."""
HANDOFFS = "handoffs"
"""The key, in the metadata, that says with the value `ask` that the agent decides itself about offered tasks."""
DECIDES = "ask"
OFFER = "coditect.handoff"
"""The action of the request that offers a running task to an HTTP agent."""
MAX_REGISTRATION_BYTES = 256 * 1024
MAX_HTTP_CAPABILITIES = 200
MOST_SLOTS = 1_000
Text = Annotated[str, Field(max_length=1_000)]
TYPES: Mapping[str, str] = {
    **{name: name for name in ("string", "integer", "number", "boolean", "object", "array", "null")},
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
}
"""The names of types in `parameters` that an input is checked by, and their JSON Schema types."""


class HttpForm(BaseModel):
    """A part of a registration by HTTP; null counts as left out."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        return {name: value for name, value in document.items() if value is not None}


class HttpCapability(HttpForm):
    """A capability in the registration of an HTTP agent: name, schemas, cost and time limit."""

    name: str
    description: str = ""
    input_schema: dict[str, Any] = {}
    """JSON Schema of the parameters."""
    parameters: dict[Text, Text | dict[str, Any]] = {}
    """In place of `input_schema`: the type of each parameter, such as `string`, by its name."""
    output_schema: dict[str, Any] = {}
    """JSON Schema of the result."""
    tags: list[Text] = []
    cost: float = 1.0
    cost_estimate: float | None = None
    """Another name of `cost`."""
    timeout_seconds: float = Field(default=300.0, gt=0, le=LONGEST_SECONDS)
    """Longest run of one attempt, at most seven days; above ten minutes it takes durable tasks."""
    max_queued: int | None = Field(default=None, ge=1, le=MOST_QUEUED)
    """The number of waiting tasks from which the broker refuses more; the same for all agents of the capability."""


class HttpRegistration(HttpForm):
    """The registration of an agent that speaks only HTTP."""

    agent_id: str = Field(default="", max_length=100, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")
    """The agent's id; by default it follows from name and URL."""
    name: str = ""
    """Lower-case letters, digits, - and _; several agents may have the same name."""
    agent_name: Text = ""
    """In place of `name`: any text, from which the name follows."""
    base_url: str
    """The URL below which the agent serves `/agent-request`."""
    capabilities: list[HttpCapability | str] = Field(min_length=1, max_length=MAX_HTTP_CAPABILITIES)
    """The capabilities, or their names alone."""
    version: Text = "0.0.0"
    description: str = ""
    tags: list[Text] = []
    slots: int = Field(default=1, ge=1, le=MOST_SLOTS)
    """How many requests the agent takes at once."""
    metadata: dict[Text, Any] = Field(default={}, max_length=64)
    """Any JSON, which the registry shows."""
    status: Text = ""
    """`offline` ends the registration; any other status counts for nothing, since the bridge sees how the agent is."""

    def checked(self, hosts: AllowedHosts, *, now_ms: int) -> Registration:
        """Return the registration as the registry keeps it, after checks of its URL, its size and its capabilities.

        An id that the agent does not give follows from name and URL, so that registering again changes the registration
        and keeps the agent.

        Raises:
            InputError: when the URL's host is not allowed, or the declaration is wrong; the error says what to write.
        """
        url = hosts.check(self.base_url)
        declared = [
            HttpCapability(name=capability) if isinstance(capability, str) else capability
            for capability in self.capabilities
        ]
        name = self.name or _slug(self.agent_name) or _slug(self.agent_id)
        own = {BASE_URL: url, AGENT_NAME: self.agent_name, "description": self.description}
        found = Registration(
            agent_id=AgentId(self.agent_id or f"{name}-{sha256(url.encode()).hexdigest()[:8]}"),
            name=name,
            version=self.version,
            slots=self.slots,
            capabilities=tuple(_spec(capability) for capability in declared),
            tags=frozenset(self.tags),
            started_at_ms=now_ms,
            metadata=self.metadata | {key: text for key, text in own.items() if text},
        )
        if is_others_name(found.agent_id):
            raise InputError("Another process has this name", agent_id=found.agent_id, fix="choose another agent_id")
        if len(encode_registration(found)) > MAX_REGISTRATION_BYTES:
            raise InputError(
                "The registration is too large", most_bytes=MAX_REGISTRATION_BYTES, fix="shorten schemas and metadata"
            )
        try:
            http_agent(found, None)
        except SetupError as error:
            error.facts.pop("at", None)
            raise InputError(error.sentence, **error.facts) from error
        return found


def _slug(text: str) -> str:
    """Return the name of an agent that calls itself by any text; empty when no letter or digit can be in it."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64]


def _schema_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of parameters that are declared by name and type; an unknown type admits any value."""
    if not parameters:
        return {}
    return {"type": "object", "properties": {name: _type_schema(kind) for name, kind in parameters.items()}}


def _type_schema(kind: Any) -> dict[str, Any]:
    if isinstance(kind, dict):
        return kind
    known = TYPES.get(kind.lower())
    return {"description": kind} if known is None else {"type": known}


def types_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an input's JSON Schema by name and type."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    shown = ((name, schema if isinstance(schema, dict) else {}) for name, schema in properties.items())
    return {name: schema.get("type", schema.get("description", schema)) for name, schema in shown}


def _spec(declared: HttpCapability) -> CapabilitySpec:
    return CapabilitySpec(
        name=declared.name,
        description=declared.description,
        input_schema=declared.input_schema or _schema_of(declared.parameters),
        output_schema=declared.output_schema,
        cost=declared.cost if declared.cost_estimate is None else declared.cost_estimate,
        tags=frozenset(declared.tags),
        timeout_seconds=declared.timeout_seconds,
        max_queued=declared.max_queued,
    )


def http_agent(registration: Registration, link: AgentLink | None) -> Agent:
    """Return the `Agent` that posts its tasks to an HTTP agent; if `link` is None, it is only checked, never run.

    The agent's breaker opens when its URL fails: its tasks wait for it then, or for another agent, and no attempt
    counts. An action that the agent answers with an error is no failure of the URL.

    Raises:
        SetupError: when the registration cannot be declared.
    """
    description = registration.metadata.get("description", "")
    agent = Agent(
        registration.name,
        version=registration.version,
        slots=registration.slots,
        tags=registration.tags,
        description=description if isinstance(description, str) else "",
    )
    if link is not None:
        _listen(agent, registration, link)
    failures = (AgentLost, AnswerBroken, TimeoutError)
    breaker = Breaker(f"http {registration.agent_id}", on=failures, scope=BreakerScope.LOCAL)
    for spec in registration.capabilities:
        declare = agent.capability(
            spec.name,
            timeout=spec.timeout_seconds,
            description=spec.description,
            tags=spec.tags,
            cost=spec.cost,
            max_queued=spec.max_queued,
            breaker=breaker,
        )
        declare(_handler(spec, link))
    return agent


def _listen(agent: Agent, registration: Registration, link: AgentLink) -> None:
    """Pass broadcasts of the topics that an HTTP agent names on to it, and offers of handoffs if it wants to decide."""
    agent_id, metadata = registration.agent_id, registration.metadata
    for topic in _topics(metadata.get(BROADCASTS)):
        agent.on_broadcast(topic)(partial(link.hear, topic, agent_id))
    agent.on_broadcast(TOPIC)(partial(heard, link.callbacks))
    if metadata.get(HANDOFFS) == DECIDES:

        @agent.on_handoff
        async def decide(offer: HandoffOffer) -> Any:
            try:
                reply = await link.ask(OFFER, agent_id, offer.as_json(), source=offer.owner)
            except (CoditectError, TimeoutError) as error:
                return f"it could not be asked: {str(error) or 'it did not answer in time'}"
            return ANSWERED_LATER if reply is None else reply


def _topics(topics: Any) -> list[str]:
    """Return the topics that an agent's metadata name, by a text with commas or a list; any other JSON names none."""
    texts = topics.split(",") if isinstance(topics, str) else topics if isinstance(topics, list) else ()
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _handler(spec: CapabilitySpec, link: AgentLink | None) -> Callable[..., Any]:
    async def act(value: Any, ctx: Context) -> Any:
        assert link is not None, "a declaration that is only checked runs nothing"
        return await link.act(value, ctx, timeout_seconds=spec.timeout_seconds)

    check = check_of(spec.input_schema, capability=spec.name, fix="correct input_schema, or leave it out")
    posted = None if check is None else lambda value: check(parameters_of(value))
    return declaring(act, spec.input_schema, spec.output_schema, posted)
