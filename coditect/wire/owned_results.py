"""Results of owned tasks that travel together: what an agent ends in one moment, for the owner of one shard.

====================  ==========================================================================================
type                  ``coditect.results.v1``; `app_id` is the agent process that did all of them
body                  a list of ``[workflow, node, fence, publication, attempt, task, started, finished,
                      capability, free, value]``; the times in milliseconds since the epoch
====================  ==========================================================================================

Only of completed attempts, and small: whatever else there is to say of one takes a message of its own
(`wire.owned_result_message`). A message costs the broker what a result of a few bytes never would.
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
from coditect.wire.tasks import OwnedResult

MOST_CHARACTERS = 255
MOST_NUMBER = 2**53 - 1
RESULTS_TYPE = "coditect.results.v1"
MOST_TOGETHER = 128
MOST_BYTES = 65_536
"""Of the values in a message."""
LONGEST_BYTES = 4_096
"""Of a value that travels with others."""


def may_share(result: OwnedResult) -> bool:
    """Whether it can travel with others."""
    outcome = result.outcome
    return (
        outcome.status is Status.COMPLETED
        and len(outcome.body) <= LONGEST_BYTES
        and not outcome.claims
        and result.retry_ms is None
        and outcome.task_id is not None
        and outcome.correlation_id == outcome.task_id
        and outcome.started_at_ms is not None
        and outcome.finished_at_ms is not None
        and outcome.fence == result.owner.fence
    )


def results_message(results: Sequence[OwnedResult], *, message_id: str) -> Message:
    """Several of one agent and one shard, each of which `may_share`."""
    body = b"[%s]" % b",".join(map(_written, results))
    return Message(body, {}, message_id, type=RESULTS_TYPE, app_id=results[0].outcome.agent_id)


def read_results(message: Message, origin: str) -> list[OwnedResult]:
    """What `results_message` wrote, for the owner of the shard `origin`. Raises: InvalidTask when it is not that."""
    agent, rows = AgentId(message.app_id) if message.app_id else None, loads(message.body)
    try:
        return [_read(row, agent, origin) for row in rows]
    except (TypeError, ValueError) as error:
        raise InvalidTask("The message is no list of results", reason=repr(error)[:200]) from error


def read_owners(message: Message, origin: str) -> list[tuple[Owner, int]]:
    """Whose results they are, with the publications, as far as the rows say; also of a message that is not that."""
    try:
        rows = loads(message.body)
    except InvalidTask:
        return []
    found = []
    for row in rows if isinstance(rows, list) else ():
        with suppress(TypeError, ValueError):
            found.append(_owner(row, origin))
    return found


def _written(result: OwnedResult) -> bytes:
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


def _read(row: object, agent: AgentId | None, origin: str) -> OwnedResult:
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
    return OwnedResult(owner, publication, outcome, _text(capability), None, free is True)


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
