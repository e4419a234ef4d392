"""The messages about workflow tasks: acquire requests and their answers, batches of results, and handoff offers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from coditect.errors import InvalidTask
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.model.task import Owner
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import OutcomeReport


class Verdict(StrEnum):
    """The control plane's decision on an agent's request to run a workflow task: run it, drop it, or wait."""

    RUN = "run"
    """Run the delivery's task, as the attempt and with the fence of the answer."""
    STALE = "stale"
    """Drop the delivery: the node has a newer publication, or has ended."""
    WAIT = "wait"
    """Hand the delivery back and ask again: another agent may have the task, and this would be one attempt too many."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a request to run a workflow task: verdict, fence, attempt, and whether the task may kill agents."""

    verdict: Verdict
    fence: int = 0
    attempt: int = 1
    suspect: bool = False
    """Whether to run the task in a process of its own, because it may have killed the agent that ran it before."""
    known: bool = True
    """Whether the node exists; the delivery of an unknown node is stale, and comes from a foreign publisher."""

    def as_json(self) -> dict[str, Any]:
        """Return the answer to an agent that asks to run a workflow task, as the JSON object of the message body."""
        return {
            "verdict": self.verdict.value,
            "fence": self.fence,
            "attempt": self.attempt,
            "suspect": self.suspect,
            "known": self.known,
        }

    @classmethod
    def read(cls, value: Any) -> Self:
        """Parse the control plane's answer to an agent that asks to run a workflow task.

        Raises:
            InvalidTask: when the value is no such answer.
        """
        try:
            verdict, fence, attempt = Verdict(value["verdict"]), int(value["fence"]), int(value["attempt"])
            return cls(verdict, fence, attempt, value["suspect"] is True, value.get("known") is not False)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidTask("The answer is no claim", reason=repr(error)[:200]) from error


def claim_body(
    owner: Owner, *, publication: int, agent: str, running: bool, max_attempts: int | None = None
) -> dict[str, Any]:
    """Build the body of an agent's request to run a workflow task.

    `running`: the delivery belongs to an execution that the agent still has. `max_attempts`: the number of attempts in
    the capability's own retry policy.
    """
    return {
        "workflow": owner.workflow,
        "node": owner.node,
        "fence": owner.fence,
        "publication": publication,
        "agent": agent,
        "running": running,
        **({} if max_attempts is None else {"max_attempts": max_attempts}),
    }


# Result batches: one message with the results of many workflow tasks, from one agent to the owner of one shard.
#
# ====================  ==========================================================================================
# type                  ``coditect.results.v1``; `app_id` is the agent process that did all of them
# body                  a list of ``[workflow, node, fence, publication, attempt, task, started, finished,
#                       capability, free, value]``; the times in milliseconds since the epoch
# ====================  ==========================================================================================
#
# A batch holds only small results of completed attempts: any other result takes a message of its own
# (`wire.outcome_report_message`). A message costs the broker far more than a result of a few bytes.

MOST_CHARACTERS = 255
MOST_NUMBER = 2**53 - 1
RESULTS_TYPE = "coditect.results.v1"
MAX_BATCHED_RESULTS = 128
BATCH_BYTES_LIMIT = 65_536
"""The most bytes that the values in one result batch have together."""
LONGEST_BYTES = 4_096
"""The most bytes of a single value in a result batch."""


def may_share(result: OutcomeReport) -> bool:
    """Tell whether a workflow task's result may travel in a batch: a small value of a completed attempt."""
    outcome = result.outcome
    return (
        outcome.status is Status.COMPLETED
        and len(outcome.body) <= LONGEST_BYTES
        and not outcome.claims
        and outcome.retry_ms is None
        and outcome.task_id is not None
        and outcome.correlation_id == outcome.task_id
        and outcome.started_at_ms is not None
        and outcome.finished_at_ms is not None
        and outcome.fence == result.owner.fence
    )


def results_message(results: Sequence[OutcomeReport], *, message_id: str) -> Message:
    """Build one message from several results of one agent for one shard, each allowed by `may_share`."""
    body = b"[%s]" % b",".join(map(_written, results))
    return Message(body, {}, message_id, type=RESULTS_TYPE, app_id=results[0].outcome.agent_id)


def read_results(message: Message, origin: str) -> list[OutcomeReport]:
    """Parse a batch of workflow tasks' results; `origin` is the shard whose results queue delivered the batch.

    Raises:
        InvalidTask: when the message has another form.
    """
    agent, rows = AgentId(message.app_id) if message.app_id else None, loads(message.body)
    try:
        return [_read(row, agent, origin) for row in rows]
    except (TypeError, ValueError) as error:
        raise InvalidTask("The message is no list of results", reason=repr(error)[:200]) from error


def read_owners(message: Message, origin: str) -> list[tuple[Owner, int]]:
    """Return the nodes and publication numbers named in a result batch, even if other parts of it are unreadable."""
    try:
        rows = loads(message.body)
    except InvalidTask:
        return []
    found = []
    for row in rows if isinstance(rows, list) else ():
        with suppress(TypeError, ValueError):
            found.append(_owner(row, origin))
    return found


def _written(result: OutcomeReport) -> bytes:
    owner, outcome = result.owner, result.outcome
    row = (
        owner.workflow,
        owner.node,
        owner.fence,
        result.publication,
        outcome.attempt,
        outcome.task_id,
        outcome.started_at_ms,
        outcome.finished_at_ms,
        result.capability,
        result.free,
    )
    return b"%s,%s]" % (dumps(row)[:-1], outcome.body)


def _read(row: object, agent: AgentId | None, origin: str) -> OutcomeReport:
    owner, publication = _owner(row, origin)
    assert isinstance(row, list)
    _, _, _, _, attempt, task, started_ms, finished_ms, capability, free, value = row
    task_id = _text(task)
    outcome = Outcome(
        Status.COMPLETED,
        dumps(value),
        task_id,
        task_id,
        agent,
        _number(attempt),
        owner.fence,
        _number(started_ms),
        _number(finished_ms),
    )
    return OutcomeReport(owner, publication, outcome, _text(capability), free is True)


def _owner(row: object, origin: str) -> tuple[Owner, int]:
    if not isinstance(row, list):
        raise TypeError("a result is a list")
    workflow, node, fence, publication = row[:4]
    return Owner(_text(workflow), _text(node), origin, _number(fence)), _number(publication)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        raise ValueError(f"a text of at most {MOST_CHARACTERS} characters is expected")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MOST_NUMBER:
        raise ValueError(f"a number from 0 to {MOST_NUMBER} is expected")
    return value


@dataclass(frozen=True, slots=True)
class HandoffOffer:
    """A running task that its agent offers to another agent, as that agent's `on_handoff` function sees it."""

    handoff: str
    """The id of the handoff."""
    task_id: str
    capability: str
    """The capability as which the agent would run the task."""
    owner: str
    """The agent that has the task now, and keeps it until another one accepts."""
    reason: str
    context: Any
    """What the owner passes on: any JSON value."""
    hop: int
    """How often the task will have changed hands when this offer is accepted, from 1."""
    input: Any = None
    """The input of the task; None when `whole` is False."""
    whole: bool = True
    """Whether the offer has the input; it does not when the input is over 256 KB or lies in the blob store."""

    def as_json(self) -> dict[str, Any]:
        """Return the offer as the content of a control message."""
        return asdict(self)

    @classmethod
    def read(cls, content: Any) -> Self:
        """Parse an offer from the content of a control message.

        Raises:
            InvalidTask: when the content is no such offer.
        """
        try:
            handoff, task_id, capability, owner, reason = (
                str(content[name]) for name in ("handoff", "task_id", "capability", "owner", "reason")
            )
            hop, whole = int(content["hop"]), content["whole"] is True
            return cls(handoff, task_id, capability, owner, reason, content["context"], hop, content["input"], whole)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidTask("A control message offers no task", reason=repr(error)[:200]) from error
