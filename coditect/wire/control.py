"""What is said to the control plane and by it: requests, claims, and what agents tell about owned tasks.

Everything is a message whose body is JSON. A *request* goes to `coditect.control` and is answered to its `reply_to`
as a task is: with a result, status `completed` and a value, or `rejected` and a failure.

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

A request is known by its ``message_id``, unique for each, or else its ``correlation_id``: one that changes a workflow
is done once, and the same message again is told what it was told, for a day. Without either each is another request.

A request about a workflow may go to ``any``: whoever gets it hands it to the workflow's shard. A claim goes to the
shard that the task's ``x-coditect-origin`` names.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import Any, Self

from coditect.errors import InvalidTask
from coditect.model.message import Message
from coditect.model.task import Owner
from coditect.wire import tasks
from coditect.wire.json import dumps, loads

REQUEST_TYPE = "coditect.control.v1"
STARTED_TYPE = "coditect.started.v1"
PROGRESS_TYPE = "coditect.progress.v1"

VERB = tasks.PREFIX + "verb"
ANY = "any"
"""The routing key of requests that any dispatcher may take."""


class Verb(StrEnum):
    """What may be asked of the control plane. Every answer is a JSON object."""

    START = "workflow.start"
    """One chunk of a workflow: `workflow` (the id, a UUIDv7 of the client), `name`, `description`, `input`, `key`
    (idempotency), `chunk` (from 1), `chunks`, `count` (nodes in all), `nodes` (a part of the definition's document, in
    topological order). The last chunk accepts: `{"workflow": id, "state": "accepted", "new": true}`; with a known key
    the earlier workflow's id, its state and `"new": false`. Each chunk may be repeated."""
    GET = "workflow.get"
    """`workflow` → its state, name, counts by state, times, and with one node that node's value or failure."""
    LIST = "workflow.list"
    """`state`, `after`, `limit` → `{"workflows": [...], "next": ...}`."""
    NODES = "workflow.nodes"
    """`workflow`, `after`, `limit` → `{"nodes": [...], "next": ...}`: state, attempt, agent, times of each, its
    edges with what they do on failure, and its definition but for the input."""
    ATTEMPTS = "workflow.attempts"
    """`workflow`, `node` or all, `after`, `limit` → `{"attempts": [...], "next": ...}`."""
    RESULT = "workflow.result"
    """`workflow`, `node` (default: its last one) → `{"state": ..., "value": ..., "failure": ...}`."""
    CANCEL = "workflow.cancel"
    """`workflow`, `reason`."""
    PAUSE = "workflow.pause"
    """`workflow`: nothing new is published."""
    RESUME = "workflow.resume"
    """`workflow`: a paused one goes on; a failed one runs again from its first failed nodes → its `state`, and in the
    second case `again` and `more` as of a redrive."""
    REDRIVE = "node.redrive"
    """`workflow`, `node`, `input` (optional), `dry_run` → `again`: nodes that begin anew, at most 500 of them; and
    whether there are `more`, or may be."""
    DEAD = "dead.list"
    """`after`, `limit` → `{"dead": [...], "next": ...}`: nodes whose agents died until no attempt was left, with the
    fields of `nodes` and `workflow`; those of the workflow that was accepted first come first."""
    APPROVALS = "approval.list"
    """`after`, `limit` → `{"approvals": [...], "next": ...}`."""
    ANSWER = "approval.answer"
    """`workflow`, `node`, `granted`, `by`, `comment`."""
    CLAIM = "node.claim"
    """`workflow`, `node`, `fence`, `publication`, `agent`, `running` → `Claim`."""
    STATUS = "control.status"
    """→ `{"shards": [{"shard", "owner", "epoch", "marker", "workflows", "under_way"}], "dispatchers": [...],
    "answered_by": {"owner", "shards", "under_way", "refused", "late", "strange", "unrecorded"}}`: of the dispatcher
    that answers, since it began: how many commits a lease refused, how many results a fence, how many were of nodes
    that nobody knows, and how many could not be recorded. With `shard` that one's owner answers,
    with `answered_by` alone."""
    REBUILD = "control.rebuild"
    """`shard`, `occasion` → what was made anew, by kind: queues, published, working, workflows, jobs; and
    `compared`, whether all of RQ was compared to count the last two. The same occasion again publishes nothing more."""


class Verdict(StrEnum):
    """What becomes of a delivery that was claimed."""

    RUN = "run"
    """Run it, as the attempt and with the fence of the answer."""
    STALE = "stale"
    """Drop it: there is a newer publication, or the node has ended."""
    WAIT = "wait"
    """Another agent has it, as far as is known: hand it back and ask again."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim."""

    verdict: Verdict
    fence: int = 0
    attempt: int = 1
    suspect: bool = False
    """Run it in a process of its own: it may have killed the agent that had it."""
    known: bool = True
    """Whether there is such a node; what names another is stale, and no delivery of ours."""

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "verdict": self.verdict.value,
            "fence": self.fence,
            "attempt": self.attempt,
            "suspect": self.suspect,
            "known": self.known,
        }

    @classmethod
    def read(cls, value: Any) -> Self:
        """The claim in an answer. Raises: InvalidTask."""
        try:
            verdict, fence, attempt = Verdict(value["verdict"]), int(value["fence"]), int(value["attempt"])
            return cls(verdict, fence, attempt, value["suspect"] is True, value.get("known") is not False)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidTask("The answer is no claim", reason=repr(error)[:200]) from error


@dataclass(frozen=True, slots=True)
class Started:
    """An owned task runs."""

    workflow: str
    node: str
    fence: int
    publication: int
    agent: str
    attempt: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an owned task is; also the sign of life of one whose delivery was acknowledged early."""

    workflow: str
    node: str
    fence: int
    share: float
    """0 to 1."""
    message: str
    at_ms: int


def request(verb: Verb, body: dict[str, Any], *, reply_to: str | None, correlation_id: str) -> Message:
    """The message of a request."""
    return Message(
        body=dumps(body),
        headers={VERB: verb.value},
        message_id=correlation_id,
        correlation_id=correlation_id,
        reply_to=reply_to,
        type=REQUEST_TYPE,
    )


def read_request(message: Message) -> tuple[Verb, dict[str, Any]]:
    """Verb and body. Raises: InvalidTask when it is no request that we know."""
    if message.type != REQUEST_TYPE:
        raise InvalidTask("This is no request to the control plane", type=str(message.type)[:120])
    try:
        verb = Verb(message.headers.get(VERB, ""))
    except ValueError as error:
        given = str(message.headers.get(VERB))[:80]
        raise InvalidTask("The control plane does not know this verb", given=given, known=tuple(Verb)) from error
    body = loads(message.body)
    if not isinstance(body, dict):
        raise InvalidTask("A request's body is a JSON object", verb=verb.value)
    return verb, body


def claim_body(owner: Owner, *, publication: int, agent: str, running: bool) -> dict[str, Any]:
    """The body of a claim. `running`: the agent re-attached it to an execution that it still has."""
    return {
        "workflow": owner.workflow,
        "node": owner.node,
        "fence": owner.fence,
        "publication": publication,
        "agent": agent,
        "running": running,
    }


def started_message(started: list[Started]) -> Message:
    """What an agent began, one message for many."""
    return Message(body=dumps([list(astuple(one)) for one in started]), type=STARTED_TYPE)


def read_started(message: Message) -> list[Started]:
    """Raises: InvalidTask when it is not what `started_message` writes."""
    try:
        return [
            Started(str(workflow), str(node), int(fence), int(publication), str(agent), int(attempt), int(at_ms))
            for workflow, node, fence, publication, agent, attempt, at_ms in loads(message.body)
        ]
    except (TypeError, ValueError) as error:
        raise InvalidTask("The message is no list of starts", reason=repr(error)[:200]) from error


def progress_message(progress: list[Progress]) -> Message:
    """How far an agent's owned tasks are, one message for many."""
    return Message(body=dumps([list(astuple(one)) for one in progress]), type=PROGRESS_TYPE)


def read_progress(message: Message) -> list[Progress]:
    """Raises: InvalidTask when it is not what `progress_message` writes."""
    try:
        return [
            Progress(str(workflow), str(node), int(fence), float(share), str(note), int(at_ms))
            for workflow, node, fence, share, note, at_ms in loads(message.body)
        ]
    except (TypeError, ValueError) as error:
        raise InvalidTask("The message is no list of progress", reason=repr(error)[:200]) from error
