"""The wire format of tasks, results and the parts of streamed results: AMQP properties, headers and body.

The body is the input (or the value, or the failure) and nothing else. Everything about it is optional:

==========================  ============================================  =======================
task                        where                                         default
==========================  ============================================  =======================
capability, priority        routing key ``<capability>.<p0|p1|p2>``       p1
id                          ``message_id``                                none: no duplicates known
correlation, reply address  ``correlation_id``, ``reply_to``              no reply
schema                      ``type`` = ``coditect.task.v1``               that
limits                      ``x-coditect-deadline``, ``-start-by``,       none
                            ``-timeout-ms``, ``-max-attempts``, ``-only``
counters                    ``-attempt``, ``-publication``, ``-redrive``  1, 0, 0
nesting; parts ahead        ``-depth``; ``-stream`` (below)        0; 0
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

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any

from coditect.errors import InvalidTask, TooLarge
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import JSON, OCTETS, HeaderTable, Message, SharedHeaders, TemplateHeaders, value
from coditect.model.prediction import Features, features_of
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import MAX_DEPTH, MOST_AHEAD, NO_LIMITS, Limits, Owner, Task
from coditect.wire.headers import (
    ERRORS_HEADER,
    HEADER_PREFIX,
    HISTORY_BYTES_LIMIT,
    MAX_TRACE_CHARS,
    TRACEPARENT,
    TraceContext,
    history_header,
    put_trace,
    read_history,
    read_trace,
)
from coditect.wire.json import dumps, loads
from coditect.wire.routing import CAPABILITY, target_of, task_target

MAX_BODY_BYTES = 1024 * 1024
MOST_FEATURE_BYTES = 64 * 1024
"""The largest input that is parsed for its features."""
TASK_TYPE = "coditect.task.v1"
RESULT_TYPE = "coditect.result.v1"

DEADLINE = HEADER_PREFIX + "deadline"
START_BY = HEADER_PREFIX + "start-by"
TIMEOUT_MS = HEADER_PREFIX + "timeout-ms"
MAX_ATTEMPTS = HEADER_PREFIX + "max-attempts"
ONLY = HEADER_PREFIX + "only"
ATTEMPT = HEADER_PREFIX + "attempt"
PUBLICATION = HEADER_PREFIX + "publication"
RETRY_MS = HEADER_PREFIX + "retry-ms"
FREE = HEADER_PREFIX + "free"
STREAM = HEADER_PREFIX + "stream"
SENT_AGAIN = HEADER_PREFIX + "sent-again"
"""The header that the broker adapter adds to a message that it sends again, since two copies may exist then."""
REDRIVE = HEADER_PREFIX + "redrive"
DEPTH = HEADER_PREFIX + "depth"
ERRORS = ERRORS_HEADER
PUBLISHED_AT = HEADER_PREFIX + "published-at"
WORKFLOW_HEADER = HEADER_PREFIX + "workflow"
NODE_HEADER = HEADER_PREFIX + "node"
ORIGIN = HEADER_PREFIX + "origin"
FENCE = HEADER_PREFIX + "fence"
CLAIM = HEADER_PREFIX + "claim"
STATUS = HEADER_PREFIX + "status"
AGENT = HEADER_PREFIX + "agent"
TASK = HEADER_PREFIX + "task"
STARTED_AT = HEADER_PREFIX + "started-at"
FINISHED_AT = HEADER_PREFIX + "finished-at"
REASON, ERROR, DEAD_AT = HEADER_PREFIX + "reason", HEADER_PREFIX + "error", HEADER_PREFIX + "dead-at"
UNDECODABLE = HEADER_PREFIX + "undecodable"
"""The header that the broker adapter adds to a message with an undecodable part: which part, and why."""

_LIMITS = frozenset((DEADLINE, START_BY, TIMEOUT_MS, MAX_ATTEMPTS, ONLY))
_STORY = frozenset((ATTEMPT, PUBLICATION, REDRIVE, DEPTH, ERRORS, WORKFLOW_HEADER, CLAIM, STREAM))
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
    if trace is not None:
        put_trace(headers, trace)
    elif not (task.traceparent is task.tracestate is task.baggage is None):
        put_trace(headers, task)
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
    ends = [end_ms for end_ms in (task.limits.deadline_ms, task.limits.start_by_ms) if end_ms is not None]
    if not ends or task.published_at_ms is None:
        return None
    left = max(0, min(ends) - task.published_at_ms)
    return left if left <= _MAX_EXPIRATION_MS else None


def _put_limits(headers: dict[str, Any], limits: Limits) -> None:
    for name, limit in (
        (DEADLINE, limits.deadline_ms),
        (START_BY, limits.start_by_ms),
        (TIMEOUT_MS, limits.timeout_ms),
        (MAX_ATTEMPTS, limits.max_attempts),
        (ONLY, limits.only),
    ):
        if limit is not None:
            headers[name] = limit


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
    return {WORKFLOW_HEADER: owner.workflow, NODE_HEADER: owner.node, ORIGIN: owner.origin, FENCE: owner.fence}


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
            traceparent=None if len(headers) < 2 else _text(headers, TRACEPARENT, MAX_TRACE_CHARS[TRACEPARENT]),
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


def input_features(names: Sequence[str], body: bytes | None) -> Features:
    """Return the features that a capability names of a task's input; none of one in a blob, over 64 KiB, or no JSON."""
    if not names or body is None or len(body) > MOST_FEATURE_BYTES:
        return ()
    with suppress(InvalidTask):
        return features_of(names, loads(body), len(body))
    return ()


def _has_claims(message: Message) -> bool:
    schema = message.headers.get(CLAIM)
    if schema is None:
        return False
    if schema != CLAIM_TYPE:
        raise InvalidTask("A header names an unknown schema", header=CLAIM, expected=CLAIM_TYPE)
    check_claims(message.body)
    return True


def _read_limits(headers: HeaderTable) -> Limits:
    if _LIMITS.isdisjoint(headers):
        return NO_LIMITS
    only = _text(headers, ONLY, 255)
    return Limits(
        deadline_ms=_number(headers, DEADLINE, None, 0, _MAX_INSTANT),
        start_by_ms=_number(headers, START_BY, None, 0, _MAX_INSTANT),
        timeout_ms=_number(headers, TIMEOUT_MS, None, 1, _MAX_INSTANT),
        max_attempts=_number(headers, MAX_ATTEMPTS, None, 1, 1_000),
        only=AgentId(only) if only else None,
    )


def _read_owner(headers: HeaderTable) -> Owner | None:
    if WORKFLOW_HEADER not in headers:
        return None
    return Owner(
        workflow=_text(headers, WORKFLOW_HEADER, 255) or "",
        node=_text(headers, NODE_HEADER, 255) or "",
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
    text = _text(headers, ERRORS, 2 * HISTORY_BYTES_LIMIT)
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


_STATUSES = {status.value: status for status in Status}


def read_result(message: Message) -> Outcome:
    """Parse a task's result from a reply message: its status, its value or error, and who ran it.

    Raises:
        InvalidTask: when the message is no result.
    """
    headers = message.headers
    status = _STATUSES.get(str(headers.get(STATUS)))
    if status is None:
        raise InvalidTask("The reply carries no known status", status=str(headers.get(STATUS))[:40])
    completed = status is Status.COMPLETED
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
    return Failure.read(value)


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """The result of one attempt of a workflow task, as the owner of the workflow's shard receives it."""

    owner: Owner
    """The workflow node of the attempt, with the fence of its publication, or of a later grant."""
    publication: int
    outcome: Outcome
    capability: str
    free: bool = False
    """Whether the agent has a free slot for another task of the capability, and the broker has none waiting."""


def outcome_report_message(result: OutcomeReport, *, message_id: str) -> Message:
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


def read_outcome_report(message: Message) -> OutcomeReport:
    """Parse a result of a workflow task from a message of `coditect.results`.

    Raises:
        InvalidTask: when the message is no result, or names no owner.
    """
    if message.type != RESULT_TYPE:
        raise InvalidTask("The message type is no result's", type=str(message.type)[:120], expected=RESULT_TYPE)
    headers = message.headers
    owner = _read_owner(headers)
    if owner is None:
        raise InvalidTask("The result says nothing of an owner", header=WORKFLOW_HEADER)
    publication = _number(headers, PUBLICATION, 0, 0, _MAX_INSTANT) or 0
    outcome = replace(read_result(message), retry_ms=_number(headers, RETRY_MS, None, 0, _MAX_INSTANT))
    return OutcomeReport(owner, publication, outcome, _text(headers, CAPABILITY, 255) or "", headers.get(FREE) is True)


# The wire format of a streamed result: parts from the agent to the requester, and credit the other way.
#
# ::
#
#     agent     -> reply_to   coditect.part.v1    headers -task, -capability, -agent, -attempt, -execution, -part;
#                                                 body: the part. An empty body is no part: with -last the stream ends
#                                                 before this number, else the agent waits for credit to send it
#     requester -> mailbox    coditect.credit.v1  {"execution": ..., "until": ...}: parts below this number may go
#
# Each execution of a task numbers its parts from 0. Before any credit an agent sends as many parts as the
# task's header ``x-coditect-stream`` says.

PART_TYPE = "coditect.part.v1"
CREDIT = "coditect.credit.v1"
"""Permission to send parts of a streamed result; the content is a `Credit`."""
EXECUTION = HEADER_PREFIX + "execution"
PART = HEADER_PREFIX + "part"
LAST = HEADER_PREFIX + "last"
_LONGEST_ID = 255


@value
class Part:
    """A part of a streamed result; without a body, a notice that its sender waits for credit, or has sent all parts."""

    execution: str
    """The random id of the execution that the part belongs to."""
    number: int
    """The place of the part in its execution, from 0."""
    agent_id: AgentId
    attempt: int
    body: bytes = b""
    """The JSON of the part; empty when the message is no part."""
    last: bool = False
    """Whether the execution has yielded all its parts, as many as `number` says."""
    claims: bool = False
    """Whether the body holds a blob reference whose large value was not fetched yet."""


@value
class Credit:
    """A requester's permission for an agent to send the parts of a streamed result with numbers below `until`."""

    execution: str
    until: int

    def message(self) -> Message:
        """Build the control message that brings the credit to the agent's mailbox."""
        return Message(body=dumps({"execution": self.execution, "until": self.until}), type=CREDIT)


def read_credit(content: Any) -> Credit:
    """Parse the content of a credit message.

    Raises:
        InvalidTask: when execution or number are missing.
    """
    execution, until = (content.get("execution"), content.get("until")) if isinstance(content, dict) else (None, None)
    if not isinstance(execution, str) or type(until) is not int:
        raise InvalidTask("A credit names an execution and a number of parts")
    return Credit(execution, until)


def part_message(part: Part, task: Task) -> Message:
    """Build the message of a part, with the correlation id of the task's request."""
    headers: dict[str, Any] = {
        TASK: task.id or "",
        CAPABILITY: task.capability,
        AGENT: part.agent_id,
        ATTEMPT: part.attempt,
        EXECUTION: part.execution,
        PART: part.number,
    }
    if part.last:
        headers[LAST] = True
    if part.claims:
        headers[CLAIM] = CLAIM_TYPE
    correlation_id = task.correlation_id or task.id
    return Message(part.body, headers, None, correlation_id, type=PART_TYPE, app_id=part.agent_id)


def read_part(message: Message) -> Part:
    """Parse the part in a message.

    Raises:
        InvalidTask: when a header is missing or is not what the module's table says.
    """
    headers = message.headers
    execution, agent_id, number, attempt = (headers.get(name) for name in (EXECUTION, AGENT, PART, ATTEMPT))
    if not isinstance(execution, str) or not 0 < len(execution) <= _LONGEST_ID or not isinstance(agent_id, str):
        raise InvalidTask("A part names its execution and its agent", header=EXECUTION)
    if type(number) is not int or type(attempt) is not int or number < 0:
        raise InvalidTask("A part has a number and an attempt", header=PART)
    claims = CLAIM in headers
    if claims:
        check_claims(message.body)
    return Part(execution, number, AgentId(agent_id), attempt, message.body, headers.get(LAST) is True, claims)


# Blob references: the small JSON objects that travel in place of values over the inline limit (EIP's Claim Check).
#
# In a message with the header `x-coditect-claim`, an object ``{"$claim": {"sha256": ..., "bytes": ...}}`` stands for a
# large value: usually the object is the whole body, but it may be any part of the body. The value itself lies in a
# folder that both sides can reach, under its own hash: ``<first two digits>/<sha256>``. So a reference has no path in
# it that could lead elsewhere, equal values are one file, and a reader can check that a fetched value is the right one.

CLAIM_TYPE = "coditect.claim.v1"
"""The value of the header `x-coditect-claim`."""
MARK = "$claim"
MOST_CLAIMED_BYTES = 2**40
_MARK_BYTES = b'"$claim"'
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ClaimCheck:
    """A reference to a large value by the value's SHA-256 hash and size."""

    sha256: str
    """64 hexadecimal digits in lower case."""
    size_bytes: int

    @property
    def name(self) -> str:
        """The path of the value's file below the blob folder: `ab/abcd...`."""
        return f"{self.sha256[:2]}/{self.sha256}"

    @property
    def document(self) -> bytes:
        """The JSON object that replaces the value in a message."""
        return dumps({MARK: {"sha256": self.sha256, "bytes": self.size_bytes}})


def claim_check_of(body: bytes) -> ClaimCheck:
    """Return the blob reference of a value's bytes."""
    return ClaimCheck(sha256(body).hexdigest(), len(body))


def as_claim(value: object) -> ClaimCheck | None:
    """Parse a JSON value as a blob reference; return None when the value is not a blob reference."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    mark = value.get(MARK)
    if not isinstance(mark, dict) or set(mark) != {"sha256", "bytes"}:
        return None
    digest, size = mark["sha256"], mark["bytes"]
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        return None
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MOST_CLAIMED_BYTES:
        return None
    return ClaimCheck(digest, size)


def claims_in(value: object) -> Iterator[ClaimCheck]:
    """Yield every blob reference inside a JSON value, in document order."""
    claim = as_claim(value)
    if claim is not None:
        yield claim
        return
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, dict | list):
            yield from claims_in(part)


def redeemed(value: Any, values: Mapping[ClaimCheck, Any]) -> Any:
    """Return a copy of a JSON value with each blob reference replaced by its value in `values`."""
    claim = as_claim(value)
    if claim is not None:
        return values[claim]
    if isinstance(value, dict):
        return {name: redeemed(part, values) for name, part in value.items()}
    return [redeemed(part, values) for part in value] if isinstance(value, list) else value


def has_claims(body: bytes) -> bool:
    """Tell whether a JSON document holds a blob reference; almost free for a document without one."""
    return _MARK_BYTES in body and any(claims_in(loads(body)))


def check_claims(body: bytes) -> None:
    """Raise InvalidTask unless a message body holds a blob reference.

    Raises:
        InvalidTask: when the body holds none.
    """
    if not has_claims(body):
        raise InvalidTask(
            "There is no claim in the body", expected='{"$claim": {"sha256": 64 hexadecimal digits, "bytes": a number}}'
        )
