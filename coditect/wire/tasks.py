"""The wire format of tasks and results: AMQP properties, headers and body.

The body is the input (or the value, or the failure) and nothing else. Everything about it is optional:

==========================  ============================================  =======================
task                        where                                         default
==========================  ============================================  =======================
capability, priority        routing key ``<capability>.<p0|p1|p2>``       p1
id                          ``message_id``                                none: no duplicates known
correlation, reply address  ``correlation_id``, ``reply_to``              no reply
schema                      ``type`` = ``coditect.task.v1``               that
limits                      ``x-coditect-deadline``, ``-start-by``,       none
                            ``-timeout-ms``, ``-max-attempts``
counters                    ``-attempt``, ``-publication``, ``-redrive``  1, 0, 0
nesting; parts ahead        ``-depth``; ``-stream`` (`wire.parts`)        0; 0
history                     ``-errors`` (JSON), ``-published-at``         none
large parts                 ``-claim``: blob references in the body       the body is the input
owner                       ``-workflow``, ``-node``, ``-origin``,        none
                            ``-fence``; see `docs/workflow-tasks.md`
trace                       ``traceparent``, ``tracestate``, ``baggage``  new trace
==========================  ============================================  =======================

Results carry ``-status``, ``-agent``, ``-attempt``, ``-fence``, ``-task``, ``-capability``,
``-started-at``, ``-finished-at``, and ``-claim`` as a task; that of a workflow task also its owner and
``-publication``. Instants are milliseconds since the epoch.
JSON Schemas of all of it: ``docs/wire/``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from coditect.errors import InvalidTask, TooLarge
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import JSON, OCTETS, HeaderTable, Message, SharedHeaders, TemplateHeaders
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import MAX_DEPTH, MOST_AHEAD, NO_LIMITS, Limits, Owner, Task
from coditect.wire.addresses.target import CAPABILITY, target_of, task_target
from coditect.wire.blob_ref import CLAIM_TYPE, check_claims
from coditect.wire.headers.foreign import PREFIX
from coditect.wire.headers.history import HEADER, MOST_BYTES, history_header, read_history
from coditect.wire.headers.trace import LONGEST, TRACEPARENT, TraceContext, put_trace, read_trace
from coditect.wire.json import loads

MAX_BODY_BYTES = 1024 * 1024
TASK_TYPE = "coditect.task.v1"
RESULT_TYPE = "coditect.result.v1"

DEADLINE = PREFIX + "deadline"
START_BY = PREFIX + "start-by"
TIMEOUT_MS = PREFIX + "timeout-ms"
MAX_ATTEMPTS = PREFIX + "max-attempts"
ATTEMPT = PREFIX + "attempt"
PUBLICATION = PREFIX + "publication"
RETRY_MS = PREFIX + "retry-ms"
FREE = PREFIX + "free"
STREAM = PREFIX + "stream"
SENT_AGAIN = PREFIX + "sent-again"
"""The header that the broker adapter adds to a message that it sends again, since two copies may exist then."""
REDRIVE = PREFIX + "redrive"
DEPTH = PREFIX + "depth"
ERRORS = HEADER
PUBLISHED_AT = PREFIX + "published-at"
WORKFLOW = PREFIX + "workflow"
NODE = PREFIX + "node"
ORIGIN = PREFIX + "origin"
FENCE = PREFIX + "fence"
CLAIM = PREFIX + "claim"
STATUS = PREFIX + "status"
AGENT = PREFIX + "agent"
TASK = PREFIX + "task"
STARTED_AT = PREFIX + "started-at"
FINISHED_AT = PREFIX + "finished-at"
REASON, ERROR, DEAD_AT = PREFIX + "reason", PREFIX + "error", PREFIX + "dead-at"
UNDECODABLE = PREFIX + "undecodable"
"""The header that the broker adapter adds to a message with an undecodable part: which part, and why."""

_LIMITS = frozenset((DEADLINE, START_BY, TIMEOUT_MS, MAX_ATTEMPTS))
_STORY = frozenset((ATTEMPT, PUBLICATION, REDRIVE, DEPTH, ERRORS, WORKFLOW, CLAIM, STREAM))
_MAX_INSTANT = 2**53
_MAX_EXPIRATION_MS = 2**32 - 1
"""The longest expiration of a message: RabbitMQ closes the channel of a publish with a longer one."""


def task_message(task: Task, *, first: bool = False, trace: TraceContext | None = None) -> Message:
    """Build the message of a task, in its own or the given trace context; fields with their default value are left out.

    The `first` message of a direct task expires in its queue when the task was not started in time.
    """
    headers: dict[str, Any] = {} if task.published_at_ms is None else {PUBLISHED_AT: task.published_at_ms}
    if task.limits is not NO_LIMITS:
        _put_limits(headers, task.limits)
    put_trace(headers, trace or task)
    _put_counters(headers, task)
    if task.headers is not None:
        headers = {**task.headers, **headers}
    return Message(
        body=task.body if task.claims is None else task.claims,
        headers=headers,
        message_id=task.id,
        correlation_id=task.correlation_id,
        reply_to=task.reply_to,
        type=TASK_TYPE,
        expiration_ms=_expires_ms(task) if first and task.limits is not NO_LIMITS else None,
    )


def sent_again(message: Message) -> Message:
    """Return a copy of a message with a header that says that the broker may have taken the message before."""
    return replace(message, headers={**message.headers, SENT_AGAIN: True})


def _expires_ms(task: Task) -> int | None:
    """Return the milliseconds that a task's message may wait in a queue, to deadline or latest start; None for ever."""
    ends = [one for one in (task.limits.deadline_ms, task.limits.start_by_ms) if one is not None]
    if not ends or task.published_at_ms is None:
        return None
    left = max(0, min(ends) - task.published_at_ms)
    return left if left <= _MAX_EXPIRATION_MS else None


def _put_limits(headers: dict[str, Any], limits: Limits) -> None:
    for name, value in (
        (DEADLINE, limits.deadline_ms),
        (START_BY, limits.start_by_ms),
        (TIMEOUT_MS, limits.timeout_ms),
        (MAX_ATTEMPTS, limits.max_attempts),
    ):
        if value is not None:
            headers[name] = value


def _put_counters(headers: dict[str, Any], task: Task) -> None:
    if task.attempt != 1:
        headers[ATTEMPT] = task.attempt
    if task.publication:
        headers[PUBLICATION] = task.publication
    if task.redrive:
        headers[REDRIVE] = task.redrive
    if task.depth:
        headers[DEPTH] = task.depth
    if task.stream:
        headers[STREAM] = task.stream
    if task.errors:
        headers[ERRORS] = history_header(task.errors)
    if task.owner is not None:
        headers |= _owner_headers(task.owner)
    if task.claims is not None:
        headers[CLAIM] = CLAIM_TYPE


def _owner_headers(owner: Owner) -> dict[str, Any]:
    return {WORKFLOW: owner.workflow, NODE: owner.node, ORIGIN: owner.origin, FENCE: owner.fence}


def read_task(message: Message, routing_key: str) -> Task:
    """Parse the task in a delivered message; the body is parsed only for blob references.

    Raises:
        InvalidTask: when a header or the type is not as the module's table says; TooLarge for the body.
    """
    if len(message.body) > MAX_BODY_BYTES:
        raise TooLarge("The body is over the inline limit", bytes=len(message.body), limit=MAX_BODY_BYTES)
    if message.type not in (None, "", TASK_TYPE):
        raise InvalidTask("The message type is unknown", type=str(message.type)[:120], expected=TASK_TYPE)
    headers = message.headers
    if UNDECODABLE in headers:
        raise InvalidTask("The message cannot be decoded", what=str(headers[UNDECODABLE])[:200])
    task_id = TaskId(message.message_id) if message.message_id else None
    if not headers or (
        PUBLISHED_AT in headers and (len(headers) == 1 or (len(headers) == 2 and TRACEPARENT in headers))
    ):
        capability, priority = target_of(routing_key)
        return Task(
            capability,
            priority,
            message.body,
            task_id,
            message.correlation_id,
            message.reply_to,
            published_at_ms=_number(headers, PUBLISHED_AT, None, 0, _MAX_INSTANT),
            traceparent=None if len(headers) < 2 else _text(headers, TRACEPARENT, LONGEST[TRACEPARENT]),
        )
    capability, priority = task_target(headers, routing_key)
    return Task(
        capability=capability,
        priority=priority,
        body=message.body,
        id=task_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        limits=_read_limits(headers),
        published_at_ms=_number(headers, PUBLISHED_AT, None, 0, _MAX_INSTANT),
        **read_trace(headers),
        **({} if _STORY.isdisjoint(headers) else _read_story(message)),
    )


def _read_story(message: Message) -> dict[str, Any]:
    """Parse the headers that few tasks have, such as attempt, errors and owner, and return the values by field name."""
    headers, owner = message.headers, _read_owner(message.headers)
    return {
        "attempt": _number(headers, ATTEMPT, 1, 1, 10_000) or 1,
        "publication": _number(headers, PUBLICATION, 0, 0, _MAX_INSTANT) or 0,
        "redrive": _number(headers, REDRIVE, 0, 0, 10_000) or 0,
        "depth": _number(headers, DEPTH, 0, 0, MAX_DEPTH) or 0,
        "errors": _read_errors(headers),
        "owner": None if message.reply_to else owner,  # whoever wants an answer is no dispatcher
        "claims": message.body if _has_claims(message) else None,
        "stream": _number(headers, STREAM, 0, 0, MOST_AHEAD) or 0,
    }


def _has_claims(message: Message) -> bool:
    given = message.headers.get(CLAIM)
    if given is None:
        return False
    if given != CLAIM_TYPE:
        raise InvalidTask("A header names an unknown schema", header=CLAIM, expected=CLAIM_TYPE)
    check_claims(message.body)
    return True


def _read_limits(headers: HeaderTable) -> Limits:
    if _LIMITS.isdisjoint(headers):
        return NO_LIMITS
    return Limits(
        deadline_ms=_number(headers, DEADLINE, None, 0, _MAX_INSTANT),
        start_by_ms=_number(headers, START_BY, None, 0, _MAX_INSTANT),
        timeout_ms=_number(headers, TIMEOUT_MS, None, 1, _MAX_INSTANT),
        max_attempts=_number(headers, MAX_ATTEMPTS, None, 1, 1_000),
    )


def _read_owner(headers: HeaderTable) -> Owner | None:
    if WORKFLOW not in headers:
        return None
    return Owner(
        workflow=_text(headers, WORKFLOW, 255) or "",
        node=_text(headers, NODE, 255) or "",
        origin=_text(headers, ORIGIN, 255) or "",
        fence=_number(headers, FENCE, 0, 0, _MAX_INSTANT) or 0,
    )


def owner_of(message: Message) -> tuple[Owner, int] | None:
    """Return the node and publication number in an unreadable message; None if unreadable too, or of a direct task."""
    try:
        owner = None if message.reply_to else _read_owner(message.headers)
        return None if owner is None else (owner, _number(message.headers, PUBLICATION, 0, 0, _MAX_INSTANT) or 0)
    except InvalidTask:
        return None


def _read_errors(headers: HeaderTable) -> tuple[Any, ...]:
    text = _text(headers, ERRORS, 2 * MOST_BYTES)
    return () if text is None else read_history(text)


def _number(headers: HeaderTable, name: str, default: int | None, low: int, high: int) -> int | None:
    value = headers.get(name)
    if type(value) is int and low <= value <= high:
        return value
    if value is None:
        return default
    if isinstance(value, str) and value.isdecimal() and len(value) < 17:
        value = int(value)  # foreign command-line clients can send nothing but text
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidTask("A header is not a number in its range", header=name, low=low, high=high)
    return value


def _text(headers: HeaderTable, name: str, longest: int) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > longest:
        raise InvalidTask("A header is not text of its length", header=name, longest=longest)
    return value


def result_message(outcome: Outcome, *, capability: str) -> Message:
    """Build the message of a task's result, with the task's id and correlation id."""
    own: dict[str, Any] = {}
    if outcome.task_id is not None:
        own[TASK] = outcome.task_id
    if outcome.fence is not None:
        own[FENCE] = outcome.fence
    if outcome.started_at_ms is not None:
        own[STARTED_AT] = outcome.started_at_ms
    if outcome.finished_at_ms is not None:
        own[FINISHED_AT] = outcome.finished_at_ms
    if outcome.claims:
        own[CLAIM] = CLAIM_TYPE
    shared = _shared_by_results(outcome.status._value_, outcome.attempt, capability, outcome.agent_id)
    return Message(
        outcome.body,
        TemplateHeaders(shared, own),
        None,
        outcome.correlation_id or outcome.task_id,
        type=RESULT_TYPE,
        content_type=OCTETS if outcome.binary else JSON,
        app_id=outcome.agent_id,
    )


@lru_cache(maxsize=4096)
def _shared_by_results(status: str, attempt: int, capability: str, agent_id: AgentId | None) -> SharedHeaders:
    """Return the headers for a result's status, attempt, capability and agent, cached for results that share these."""
    shared = SharedHeaders({STATUS: status, ATTEMPT: attempt, CAPABILITY: capability})
    if agent_id is not None:
        shared[AGENT] = agent_id
    return shared


def read_result(message: Message) -> Outcome:
    """Parse a task's result from a reply message: its status, its value or error, and who ran it.

    Raises:
        InvalidTask: when the message is no result.
    """
    headers = message.headers
    try:
        completed = (status := Status(headers.get(STATUS, ""))) is Status.COMPLETED
    except ValueError as error:
        raise InvalidTask("The reply carries no known status", status=str(headers.get(STATUS))[:40]) from error
    agent = _text(headers, AGENT, 255)
    return Outcome(
        status=status,
        body=message.body,
        task_id=_text(headers, TASK, 255),
        correlation_id=message.correlation_id,
        agent_id=AgentId(agent) if agent else None,
        attempt=_number(headers, ATTEMPT, 1, 0, 10_000) or 1,
        fence=_number(headers, FENCE, None, 0, _MAX_INSTANT),
        started_at_ms=_number(headers, STARTED_AT, None, 0, _MAX_INSTANT),
        finished_at_ms=_number(headers, FINISHED_AT, None, 0, _MAX_INSTANT),
        failure=None if completed else _read_failure(message.body),
        claims=CLAIM in headers and _has_claims(message),
        binary=completed and message.content_type == OCTETS,
    )


def _read_failure(body: bytes) -> Failure:
    value = loads(body)
    if not isinstance(value, dict):
        raise InvalidTask("A failed result's body is a JSON object")
    words = {name: str(value.get(name, ""))[:255] for name in ("reason", "type")}
    texts = {name: str(value.get(name, "")) for name in ("message", "traceback", "fix")}
    return Failure(retryable=value.get("retryable") is True, **words, **texts)


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of one attempt of a workflow task, as the owner of the workflow's shard receives it."""

    owner: Owner
    """The workflow node of the attempt, with the fence of its publication, or of a later grant."""
    publication: int
    outcome: Outcome
    capability: str
    free: bool = False
    """Whether the agent has a free slot for another task of the capability, and the broker has none waiting."""


def attempt_result_message(result: AttemptResult, *, message_id: str) -> Message:
    """Build the message of a workflow task's result for the owner of the shard, correlated by the task's id."""
    message = result_message(result.outcome, capability=result.capability)
    headers = {**message.headers, **_owner_headers(result.owner), PUBLICATION: result.publication}
    if result.outcome.retry_ms is not None:
        headers[RETRY_MS] = result.outcome.retry_ms
    if result.free:
        headers[FREE] = True
    return Message(
        body=message.body,
        headers=headers,
        message_id=message_id,
        correlation_id=result.outcome.task_id,
        type=RESULT_TYPE,
        app_id=message.app_id,
    )


def read_attempt_result(message: Message) -> AttemptResult:
    """Parse a result of a workflow task from a message of `coditect.results`.

    Raises:
        InvalidTask: when the message is no result, or names no owner.
    """
    if message.type != RESULT_TYPE:
        raise InvalidTask("The message type is no result's", type=str(message.type)[:120], expected=RESULT_TYPE)
    headers = message.headers
    owner = _read_owner(headers)
    if owner is None:
        raise InvalidTask("The result says nothing of an owner", header=WORKFLOW)
    publication = _number(headers, PUBLICATION, 0, 0, _MAX_INSTANT) or 0
    outcome = replace(read_result(message), retry_ms=_number(headers, RETRY_MS, None, 0, _MAX_INSTANT))
    return AttemptResult(owner, publication, outcome, _text(headers, CAPABILITY, 255) or "", headers.get(FREE) is True)
