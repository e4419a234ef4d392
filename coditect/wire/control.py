"""Messages to and from the control plane: requests, agents' requests to run a task, and reports of running tasks.

Every message has a JSON body. A *request* goes to `coditect.control`; the answer goes to the request's `reply_to`, in
the form of a task's result: status `completed` and a value, or `rejected` and a failure.

========================  =====================  =========================================================
message (AMQP ``type``)   exchange, key          body
========================  =====================  =========================================================
``coditect.control.v1``   control, ``any`` or    the fields of the verb, which is in ``x-coditect-verb``;
                          the shard              see `Verb`
``coditect.result.v1``    results, the shard     the value or the failure; ``-workflow``, ``-node``,
                                                 ``-fence``, ``-publication`` say whose
``coditect.started.v1``   results, the shard     a list of `Started`, as `[workflow, node, fence,
                                                 publication, agent, attempt, at_ms]`
``coditect.progress.v1``  results, the shard     a list of `[workflow, node, fence, share, message, at_ms]`
========================  =====================  =========================================================

A request is identified by its ``message_id``, unique for each, or else by its ``correlation_id``. A request that
changes a workflow is carried out once: for a day, a repetition of the message gets the first answer. A message with
neither id is always a new request.

A request about a workflow may go to ``any``: the dispatcher that receives the request passes it on to the workflow's
shard. An acquire request, by which an agent asks to run a workflow task (`Verb.CLAIM`), goes to the shard that the
task's ``x-coditect-origin`` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Any

from coditect.errors import InvalidTask
from coditect.model.message import NO_HEADERS, Message
from coditect.wire.headers import HEADER_PREFIX
from coditect.wire.json import dumps, loads

REQUEST_TYPE = "coditect.control.v1"
STARTED_TYPE = "coditect.started.v1"
PROGRESS_TYPE = "coditect.progress.v1"

VERB = HEADER_PREFIX + "verb"
ANY = "any"
"""The routing key of requests to the control plane that any dispatcher may take."""
WAIT_MS = "wait_ms"
"""The field of `get` and `result` with the milliseconds for which the answer may wait for the final state."""


class Verb(StrEnum):
    """The verbs of requests to the control plane; every answer is a JSON object."""

    START = "workflow.start"
    """Send one chunk of a workflow; the last chunk accepts the workflow.

    Fields: `workflow` (the id, a UUIDv7 of the client), `name`, `description`, `labels` (texts by name), `retention`,
    `input`, `key` (idempotency), `fingerprint` (of the request that came with the key), `chunk` (from 1), `chunks`,
    `count` (nodes in all), `nodes` (a part of the definition's document, in topological order), with the first chunk
    `workflows` (the documents of the children that nodes run, by name). The last chunk gives `{"workflow": id, "state":
    "accepted", "new": true}`; with a known key the earlier workflow's id, its state and `"new": false`; with another
    fingerprint than that key had, the request is refused. Each chunk may be repeated.
    """
    GET = "workflow.get"
    """Get a workflow: `workflow`, `wait_ms` → its state, name, counts by state, times, and of a child its `parent`.

    With `wait_ms` the answer waits until the workflow has ended, at most so long.
    """
    LIST = "workflow.list"
    """List workflows: `state`, `name`, `labels`, `since`, `until`, `after`, `limit`

    → `{"workflows": [...], "next": ...}`.
    """
    NODES = "workflow.nodes"
    """List a workflow's nodes: `workflow`, `after`, `limit` → `{"nodes": [...], "next": ...}`.

    Each with state, attempt, agent and times, its edges with what they do on failure, its definition but for the
    input, and the ids of the `children` that it ran.
    """
    ATTEMPTS = "workflow.attempts"
    """List attempts: `workflow`, `node` (default: all), `after`, `limit` → `{"attempts": [...], "next": ...}`."""
    RESULT = "workflow.result"
    """Get a result: `workflow`, `node` (default: the last), `wait_ms` → `{"state": ..., "value": ..., "failure": ...}`.

    With a `node` also its last `attempt`. With `wait_ms` the answer waits until the state is final, at most so long.
    """
    NODE_INPUT = "node.input"
    """Get what a node's task was given: `workflow`, `node` → `{"input": ..., "evaluated": ..., "trace": ...}`.

    `evaluated` is false, and `input` null, before the expressions of the input were. `trace` is the `traceparent` of
    the request that started the workflow; empty without tracing.
    """
    CANCEL = "workflow.cancel"
    """Cancel a workflow: `workflow`, `reason`."""
    PAUSE = "workflow.pause"
    """Pause a workflow, so that none of its further nodes is published: `workflow`."""
    RESUME = "workflow.resume"
    """Resume a paused workflow, or run a failed one again from its first failed nodes: `workflow` → `state`.

    In the second case also `again` and `more` as of a redrive.
    """
    REDRIVE = "node.redrive"
    """Run a node again: `workflow`, `node`, `input` (optional), `dry_run` → `again`, `more`.

    `again` has at most 500 nodes that start again; `more` tells whether there are others, or may be.
    """
    DEAD = "dead.list"
    """List nodes that were given up after their agents died: `after`, `limit` → `{"dead": [...], "next": ...}`.

    Each with the fields of `nodes` and `workflow`; nodes of the workflow that was accepted first come first.
    """
    APPROVALS = "approval.list"
    """List open approvals: `after`, `limit` → `{"approvals": [...], "next": ...}`."""
    ANSWER = "approval.answer"
    """Grant or deny an approval: `workflow`, `node`, `granted`, `by`, `comment`, `signature`."""
    APPROVAL_SHOW = "approval.show"
    """Get what was decided about a node: `workflow`, `node` → `decision` and `history`, entries of the audit trail."""
    AUDIT_LIST = "audit.list"
    """List decisions: `workflow`, `node`, `since`, `until`, `decision`, `by`, `automatic`, ... → `entries`, `next`."""
    AUTONOMY = "autonomy.report"
    """Count what finished from `since` to `until`, by workflows and `capabilities`, and what `needed` a person."""
    SIGNAL = "workflow.signal"
    """Send a signal: `workflow`, `signal` (its name), `value`, `id` → `state`, `new`.

    `state` is `taken`, with the `node` that had waited for it, or `kept` for the next node that awaits the name. An id
    that came before changes nothing: `new` is false.
    """
    CHECKPOINT = "workflow.checkpoint"
    """Give the present position of a workflow a name: `workflow`, `checkpoint`, `writer`, `by` (as `state.put`).

    → `checkpoint`, `at_ms`. A name that was given before is given to this position.
    """
    CHECKPOINTS = "workflow.checkpoints"
    """List checkpoints: `workflow`, `after`, `limit` → `{"checkpoints": [...], "restores": [...], "next": ...}`.

    Each with `checkpoint` (its name), `node` (the completed node, or empty for one on request), `at_ms`, `by`,
    `publication` (of the node). The first page has all on request and the last restores, each with `at_ms`, `by`,
    `checkpoint`.
    """
    RESTORE_PLAN = "workflow.restore_plan"
    """Say what a restore would discard: `workflow`, `checkpoint`, `after`, `limit`

    → `{"nodes": [...], "token": ..., "next": ...}`: the nodes that began since, each with `state` and whether it is
    `compensated`; what is not cannot be undone.
    """
    RESTORE = "workflow.restore"
    """Restore a workflow to a checkpoint: `workflow`, `checkpoint`, `by`, `token` (of the plan) → `state`.

    Refused when a further node began or completed since the plan.
    """
    LOCK_ACQUIRE = "lock.acquire"
    """Lock resources in one step: `ticket` (an id of the client), `resources`, `mode` (exclusive or shared), `ttl_ms`,
    `agent`, `task`, `owner` (the flow of execution that asks), `reply_to`, `wait` (default: true), `released` (tickets
    that were released before, should this request be faster), `reason` and `metadata` (what the lock is for).

    → `state`: `held` with `fence` and `expires_in_ms`; `waiting` or, without `wait`, `taken`, both with `holders` (the
    first ones, each with its reason); or `deadlock` with `cycle`.
    `gone` if the ticket has ended before: it is never granted again, however late the request arrives. A waiting ticket
    that is granted, or a ticket that is lost, is told to `reply_to` under the ticket as correlation id, once at most;
    `lock.renew` tells it, too. Each of these requests may be repeated.
    """
    LOCK_RENEW = "lock.renew"
    """Keep a ticket for another full `ttl_ms`: `ticket` → `state` as of `lock.acquire`, without `holders`, or `gone`.

    With a `fence` that is not the ticket's, nothing is kept, and the answer is `gone`.
    """
    LOCK_RELEASE = "lock.release"
    """Release a `ticket`, all tickets of an `agent` (or of its `task`), or by force all holders of a `resource`.

    The last two with a `reason`, which their owners are told; with a `fence`, only the holder of that grant →
    `released` (the number of tickets), `more`. A ticket that is released before its request arrives is never granted.
    """
    LOCK_LIST = "lock.list"
    """List locks: `resource` (default: all), `after`, `limit` → `{"locks": [...], "next": ...}`.

    Each ticket at each resource, in order of arrival, with state, mode, fence, agent, task, times, reason, metadata.
    """
    THREAD_OPEN = "thread.open"
    """Open a thread: `thread` (a UUID of the client), `type`, `title`, `participants`, `task`, `workflow`, `keep_ms`.

    Also `ticket` (of another system) and `metadata` → the thread, as of `thread.show`. A thread that is known already
    stays as it is.
    """
    THREAD_SAY = "thread.say"
    """Say something in a thread: `thread`, `message` (an id of the client), `type`, `value`, `to`, `metadata`, `names`.

    `names` are the sender's: one is a participant. → `number` and `at_ms`; a message that is known already is told
    again, and not said again.
    """
    THREAD_READ = "thread.read"
    """Say how far a participant has read: `thread`, `names`, `number` → `last`, the number of the last message.

    With `ticket` and `reply_to`, later messages are pushed there under the ticket; with `ticket` alone no more.
    """
    THREAD_CLOSE = "thread.close"
    """Close a thread, so that it takes no more messages: `thread`, `reason` → the thread."""
    THREAD_SHOW = "thread.show"
    """Get a thread: `thread` → its fields, with `read`, the last number that each participant has read."""
    THREAD_MESSAGES = "thread.messages"
    """List the messages of a thread in their order: `thread`, `names` (of a reader; default: all), `after`, `limit`.

    → `{"messages": [...], "next": ...}`.
    """
    THREAD_LIST = "thread.list"
    """List threads: `participant`, `task`, `workflow`, `ticket`, `open` (only these), `after`, `limit`

    → `{"threads": [...], "next": ...}`.
    """
    HANDOFF_REQUEST = "handoff.request"
    """Offer a running task to others: `workflow`, `node`, `fence`, `agent`, `to`, `capability`, `candidates` (agents).

    Also `reason`, `context`, `timeout_ms`, `ticket` (an id of the request) and `reply_to`, where its end is told under
    the ticket → the handoff, as of `handoff.show`. May be repeated. Others request it for the `agent` that runs the
    task without `fence` and `reply_to`: an acceptance cancels the execution, and the last agent has the whole time.
    """
    HANDOFF_ACCEPT = "handoff.accept"
    """Take a task over: `handoff`, `agent` → the handoff; done if `state` is accepted and `by` is the agent."""
    HANDOFF_DECLINE = "handoff.decline"
    """Decline an offered task: `handoff`, `agent`, `reason` → the handoff."""
    HANDOFF_WITHDRAW = "handoff.withdraw"
    """End an open handoff, so that the task stays where it is: `handoff`, `by`, `reason` → the handoff."""
    HANDOFF_SHOW = "handoff.show"
    """Get a `handoff`, or the last one by which a `task` changed hands → its fields; `handoff` is null without one."""
    HANDOFF_LIST = "handoff.list"
    """List handoffs without contexts: `task`, `workflow`, `agent`, `open`, `after`, `limit` → `handoffs`, `next`."""
    STATE_GET = "state.get"
    """Get shared state: `space`, `key`, `version` (default: the present one) → `version`, `value`, `writer`, `at_ms`.

    A space is `workflow:` and a workflow's id, or `space:` and a name. A missing key has the version 0.
    """
    STATE_PUT = "state.put"
    """Write shared state: `space`, `key`, and `value`, `patch` (a JSON merge patch) or `delete` → `version`.

    With `if_version`, only in place of that version (0: a missing key). `writer` and `task` are kept with it; `by`
    (`workflow`, `node`, `fence`) says which attempt writes, and is refused when another has followed it. `keeper` says
    which part of Coditect writes to a reserved space (`coditect.*`, `langgraph`, `langgraph:*`); others are refused.
    """
    STATE_LIST = "state.list"
    """List the keys of a space: `space`, `prefix`, `reverse` (the last first), `after`, `limit`

    → `{"keys": [...], "next": ...}`, without the values.
    """
    STATE_HISTORY = "state.history"
    """List the kept versions of a key, the latest first: `space`, `key` → `{"versions": [...]}`."""
    SCHEDULE_CREATE = "schedule.create"
    """Make a schedule: `schedule` (its name), `cron` with `zone`, or `every`; `workflow` (a document), `input`.

    Optional: `jitter`, `overlap` (allow, skip, cancel), `catch_up` (skip, latest, all), `most_missed`, `paused`,
    `replace` → the schedule. `{"$from": "tick"}` in the input is the tick as text.
    """
    SCHEDULE_LIST = "schedule.list"
    """List schedules by name: `after`, `limit` → `{"schedules": [...], "next": ...}`."""
    SCHEDULE_SHOW = "schedule.show"
    """Get a schedule: `schedule` → the schedule, with `definition`, `input` and `upcoming` ticks."""
    SCHEDULE_PAUSE = "schedule.pause"
    """Pause a schedule, so that it starts nothing: `schedule` → the schedule."""
    SCHEDULE_RESUME = "schedule.resume"
    """Resume a paused schedule with its next tick: `schedule` → the schedule."""
    SCHEDULE_RUN = "schedule.run"
    """Start a schedule's workflow now: `schedule` → `workflow` (its id, or null with a `reason`)."""
    SCHEDULE_DELETE = "schedule.delete"
    """Remove a schedule: `schedule`; its workflows go on."""
    TRIGGER_ADD = "trigger.add"
    """Make a trigger: `trigger` (its name), `event` (a topic pattern), `workflow` (a document) or `signal` with `to`.

    Optional: `input` and `when`, whose expressions see the `event`; `paused` → the trigger.
    """
    TRIGGER_LIST = "trigger.list"
    """List triggers by name: `after`, `limit` → `{"triggers": [...], "next": ...}`."""
    TRIGGER_PAUSE = "trigger.pause"
    """Pause a trigger, so that events pass it by: `trigger` → the trigger."""
    TRIGGER_RESUME = "trigger.resume"
    """Resume a paused trigger with the events from now on: `trigger` → the trigger."""
    TRIGGER_REMOVE = "trigger.remove"
    """Remove a trigger: `trigger`; its workflows go on."""
    TRIGGER_FIRE = "trigger.fire"
    """Give a trigger an event: `trigger`, `event` → `workflow`, the `signal` to send, or a `reason`."""
    BREAKER_TRIP = "breaker.trip"
    """Report that a process opened a breaker of the fleet: `name`, `reset_ms`, `reason`, `by` → its `BreakerState`."""
    BREAKER_PERMIT = "breaker.permit"
    """Ask for the permit of the next probe: `name`, `by` → the `BreakerState`, with `permit` above 0 if granted."""
    BREAKER_DECIDE = "breaker.decide"
    """Tell how a permitted probe ended: `name`, `permit`, `succeeded`, `by` → the `BreakerState`."""
    BREAKER_HOLD = "breaker.hold"
    """Open a breaker by hand, without probes until it is reset: `name`, `reason`, `by` → the `BreakerState`."""
    BREAKER_RESET = "breaker.reset"
    """Close a breaker by hand: `name`, `reason`, `by` → the `BreakerState`."""
    BREAKER_LIST = "breaker.list"
    """List the breakers that ever opened: `name` (default: all), `open` (only the open ones), `after`

    → `{"breakers": [...], "next": ...}`, each a `BreakerState` with `due_ms` and `reset_ms`.
    """
    CLAIM = "node.claim"
    """Ask to run a workflow task: `workflow`, `node`, `fence`, `publication`, `agent`, `running` → `Claim`."""
    STATUS = "control.status"
    """Get the status of the control plane: its shards, its dispatchers, and counts of the dispatcher that answers.

    → `{"shards": [{"shard", "owner", "epoch", "marker", "workflows", "under_way"}], "dispatchers": [...],
    "answered_by": {"owner", "shards", "under_way", "refused", "late", "strange", "unrecorded", "newer"}}`. The counts
    are since the dispatcher's start: commits that a lease refused, results that a fence refused, results of unknown
    nodes, results that could not be recorded; and nodes of its shards that a newer dispatcher must handle. With
    `shard`, the owner of that shard answers, with `answered_by` alone.
    """
    REBUILD = "control.rebuild"
    """Rebuild a shard: `shard`, `occasion` → the number of restored things by kind, and `compared`.

    The kinds are queues, published, working, workflows and jobs; `compared` tells whether all of RQ was compared to
    count the last two. A repeated occasion publishes nothing more.
    """


@dataclass(frozen=True, slots=True)
class Started:
    """A report that an agent started to run a workflow task."""

    workflow: str
    node: str
    fence: int
    publication: int
    agent: str
    attempt: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A report of a workflow task's progress; shows that the task still runs, even if its delivery is acknowledged."""

    workflow: str
    node: str
    fence: int
    share: float
    """The finished share of the task's work, 0 to 1."""
    message: str
    at_ms: int


def request(
    verb: str,
    body: dict[str, Any],
    *,
    reply_to: str | None,
    correlation_id: str,
    trace: Mapping[str, str] = NO_HEADERS,
) -> Message:
    """Build the message of a request to the control plane; the correlation id is also the message id."""
    return Message(
        body=dumps(body),
        headers={VERB: str(verb), **trace},
        message_id=correlation_id,
        correlation_id=correlation_id,
        reply_to=reply_to,
        type=REQUEST_TYPE,
    )


def read_request(message: Message) -> tuple[str, dict[str, Any]]:
    """Parse a request to the control plane into its verb, possibly an unknown one, and its body.

    Raises:
        InvalidTask: when the message is no request, or its body is no JSON object.
    """
    if message.type != REQUEST_TYPE:
        raise InvalidTask("This is no request to the control plane", type=str(message.type)[:120])
    verb, body = str(message.headers.get(VERB)), loads(message.body)
    if not isinstance(body, dict):
        raise InvalidTask("A request's body is a JSON object", verb=verb[:80])
    return verb, body


def started_message(started: list[Started]) -> Message:
    """Build one message that reports many started workflow tasks."""
    return Message(body=dumps([list(astuple(row)) for row in started]), type=STARTED_TYPE)


def read_started(message: Message) -> list[Started]:
    """Parse the reports of started workflow tasks from a message that `started_message` built.

    Raises:
        InvalidTask: when the message has another form.
    """
    try:
        return [
            Started(str(workflow), str(node), int(fence), int(publication), str(agent), int(attempt), int(at_ms))
            for workflow, node, fence, publication, agent, attempt, at_ms in loads(message.body)
        ]
    except (TypeError, ValueError) as error:
        raise InvalidTask("The message is no list of starts", reason=repr(error)[:200]) from error


def progress_message(progress: list[Progress]) -> Message:
    """Build one message that reports the progress of many workflow tasks."""
    return Message(body=dumps([list(astuple(row)) for row in progress]), type=PROGRESS_TYPE)


def read_progress(message: Message) -> list[Progress]:
    """Parse the reports of workflow tasks' progress from a message that `progress_message` built.

    Raises:
        InvalidTask: when the message has another form.
    """
    try:
        return [
            Progress(str(workflow), str(node), int(fence), float(share), str(note), int(at_ms))
            for workflow, node, fence, share, note, at_ms in loads(message.body)
        ]
    except (TypeError, ValueError) as error:
        raise InvalidTask("The message is no list of progress", reason=repr(error)[:200]) from error


# The names of spaces, the key-value stores of shared state: `workflow:` and an id, or `space:` and a name.

_WORKFLOW = "workflow:"
_NAMED = "space:"
COORDINATION, LANGGRAPH = "coditect", "langgraph"
"""The keepers of reserved spaces: Coditect's own configuration, such as webhooks, and LangGraph's checkpoints."""
LESSONS_SPACE = f"{_NAMED}coditect.lessons"
"""The space of shared state that has the lessons, by capability."""


def workflow_space(workflow: str) -> str:
    """Return the name of the shared-state space (key-value store) that belongs to a workflow and is removed with it."""
    return _WORKFLOW + workflow


def named_space(name: str) -> str:
    """Return the prefixed name of a shared-state space (key-value store) that any agent or client may use."""
    return _NAMED + name


def keeper_of(space: str) -> str:
    """Return the keeper that alone writes to a reserved space; empty for a space that any agent or client may write.

    Reserved are the names that begin with `coditect.` or `langgraph:`, and `langgraph`.
    """
    name = space.removeprefix(_NAMED) if space.startswith(_NAMED) else ""
    if name.startswith("coditect."):
        return COORDINATION
    return LANGGRAPH if name == "langgraph" or name.startswith("langgraph:") else ""


def workflow_of(space: str) -> str | None:
    """Return the id of the workflow whose shared-state space has this name; None for any other space."""
    return space.removeprefix(_WORKFLOW) if space.startswith(_WORKFLOW) else None
