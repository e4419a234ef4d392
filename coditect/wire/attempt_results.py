"""Result batches: one message with the results of many workflow tasks, from one agent to the owner of one shard.

====================  ==========================================================================================
type                  ``coditect.results.v1``; `app_id` is the agent process that did all of them
body                  a list of ``[workflow, node, fence, publication, attempt, task, started, finished,
                      capability, free, value]``; the times in milliseconds since the epoch
====================  ==========================================================================================

A batch holds only small results of completed attempts: any other result takes a message of its own
(`wire.attempt_result_message`). A message costs the broker far more than a result of a few bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from coditect.errors import InvalidTask
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.model.task import Owner
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import AttemptResult

MOST_CHARACTERS = 255
MOST_NUMBER = 2**53 - 1
RESULTS_TYPE = "coditect.results.v1"
MOST_TOGETHER = 128
MOST_BYTES = 65_536
"""The most bytes that the values in one result batch have together."""
LONGEST_BYTES = 4_096
"""The most bytes of a single value in a result batch."""


def may_share(result: AttemptResult) -> bool:
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


def results_message(results: Sequence[AttemptResult], *, message_id: str) -> Message:
    """Build one message from several results of one agent for one shard, each allowed by `may_share`."""
    body = b"[%s]" % b",".join(map(_written, results))
    return Message(body, {}, message_id, type=RESULTS_TYPE, app_id=results[0].outcome.agent_id)


def read_results(message: Message, origin: str) -> list[AttemptResult]:
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


def _written(result: AttemptResult) -> bytes:
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


def _read(row: object, agent: AgentId | None, origin: str) -> AttemptResult:
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
    return AttemptResult(owner, publication, outcome, _text(capability), free is True)


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
