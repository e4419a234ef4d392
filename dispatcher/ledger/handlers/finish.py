"""The handlers of agents' reports about attempts of workflow tasks, and of tasks that were lost.

A result counts when its fence is the node's: the last attempt that was claimed. Every older result is refused and
counted, from any sender and however late.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from coditect.model.result import INTERRUPTED, NOT_BEGUN, RETRY_AFTER, Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.wire.workflow_tasks import Claim, Verdict
from coditect.workflow.states import TaskState
from dispatcher.ledger.commands import AgentFate, Began, Claimed, Finished, Heard, Lost
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes import advance, claim, limits, loops
from dispatcher.ledger.nodes.attempts import (
    DEADLY,
    DELIVERY_LOST,
    DIED,
    LOST_TOO_OFTEN,
    UNDER_WAY,
    UNREPORTED,
    doubt,
    is_free,
    mark_died,
    say_failed,
    why_lost,
    write_attempt,
)
from dispatcher.ledger.nodes.inputs import RESULT, write
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import republish


def finished(unit: UnitOfWork, command: Finished) -> None:
    """Record the report that an attempt ended: the node ends, retries or repeats; ignore a repeated or stale report."""
    node_key, outcome = command.node_key, command.outcome
    row = unit.node(node_key)
    if row is None:
        unit.effects.strange += 1
        return
    if row.state not in UNDER_WAY or not _is_current(row, command):
        unit.effects.late += not (row.state.terminal and row.fence == command.fence)
        if row.state in UNDER_WAY and any(fence == command.fence for _, fence in row.doubted):
            _lived(row, [command.fence])
            unit.move(node_key, row, row.state)
        return
    if outcome.status is not Status.COMPLETED:
        outcome = limits.judged(unit, row, outcome)
    _take_in(row, outcome)
    call = unit.call(node_key)
    if outcome.status is Status.COMPLETED:
        if (
            call is not None
            and call.repeat is not None
            and loops.goes_on(unit, node_key, row, call.repeat, outcome.body)
        ):
            return
        write(unit, node_key, RESULT, outcome.body, first=True)
        if command.free and call is not None:
            unit.note_free(row.agent, call.capability)
        if (row.attempt > 1 or row.by_hand or row.handoffs) and call is not None:
            known = {"capability": call.capability, "agent": row.agent, "attempt": row.attempt, "by_hand": row.by_hand}
            unit.effects.say("attempt.recovered", node_key.task_id, **known)
        advance.end(unit, node_key, row, TaskState.COMPLETED)
    elif outcome.status is Status.CANCELED:
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
    else:
        _failed(unit, node_key, row, replace(command, outcome=outcome))


def _is_current(row: NodeRecord, command: Finished) -> bool:
    if not command.fence:
        return row.publication == command.publication > 0
    return row.fence == command.fence


def _take_in(row: NodeRecord, outcome: Outcome) -> None:
    """Write an ended attempt's agent and start time to the node's row."""
    row.agent = outcome.agent_id or row.agent
    if outcome.started_at_ms is not None:
        row.started_ms = outcome.started_at_ms


def _failed(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, command: Finished) -> None:
    status, failure = command.outcome.status, command.outcome.failure or Failure("failed", "", "")
    if advance.is_over(unit.run(node_key.workflow)):
        advance.end(unit, node_key, row, TaskState.CANCELED, reason="canceled")
    elif failure.reason == NOT_BEGUN.reason:
        if command.outcome.retry_ms:
            _ready_later(unit, node_key, row, command.outcome.retry_ms)
        else:
            claim.offer(unit, node_key, row)
    elif failure.reason == INTERRUPTED.reason:
        if _has_another(unit, node_key, row, INTERRUPTED):
            limits.cancel_timeout(unit, node_key, row)
            claim.offer(unit, node_key, row)
    elif (delay_ms := _retry_ms(unit, node_key, row, command)) is not None:
        write_attempt(unit, node_key, row, status.value, failure)
        say_failed(unit, node_key, row, failure)
        _retry_later(unit, node_key, row, delay_ms)
    else:
        state = TaskState.REJECTED if status is Status.REJECTED else _state_of(failure)
        advance.fail(unit, node_key, row, failure, state=state)


def _state_of(failure: Failure) -> TaskState:
    """Return the state in which a failure ends a node that has no attempt left."""
    return TaskState.DEAD if failure.reason in DEADLY else TaskState.FAILED


def _retry_ms(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, command: Finished) -> int | None:
    """Return the delay in milliseconds between a failed attempt and the next one; None when no other attempt follows.

    The node's own policy decides, or else the capability's, whose delay the agent reports. After a failure that no
    agent reported, the next agent's claim decides by the capability's policy; the delay is the default one.
    """
    outcome = command.outcome
    if outcome.status is not Status.FAILED or outcome.failure is None or not outcome.failure.retryable:
        return None
    own = _own_policy(unit, node_key)
    if own is None and command.reported:
        return outcome.retry_ms
    if own is not None and row.attempt >= own.max_attempts:
        return None
    if outcome.failure.reason == RETRY_AFTER and outcome.retry_ms is not None:
        return outcome.retry_ms  # the handler knows when; the node knows how often
    return round(1000 * (own or Retry()).delay_seconds(row.attempt, unit.chance))


def _own_policy(unit: UnitOfWork, node_key: NodeKey) -> Retry | None:
    call = unit.call(node_key)
    return call.retry if call is not None else None


def _retry_later(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, delay_ms: int) -> None:
    limits.cancel_timeout(unit, node_key, row)
    row.attempt, row.losses = row.attempt + 1, 0
    row.start_by_ms = None
    _ready_later(unit, node_key, row, delay_ms)


def _ready_later(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, delay_ms: int) -> None:
    unit.move(node_key, row, TaskState.RETRY_WAIT)
    timer = Timer(node_key.workflow, node_key.node, claim.RETRY_TIMER, unit.now_ms + delay_ms, row.fence)
    unit.set_timer(timer)


def began(unit: UnitOfWork, command: Began) -> None:
    """Record that an agent runs a node's current attempt; an outdated or ended attempt may get a second cancel."""
    started = command.started
    node_key = NodeKey(started.workflow, started.node)
    row = unit.node(node_key)
    if row is None or row.state not in UNDER_WAY or row.fence != started.fence:
        heard(unit, Heard(node_key, started.fence))
        return
    row.agent = started.agent
    if row.state is TaskState.PUBLISHED:
        row.started_ms = started.at_ms
    limits.began(unit, node_key, row)
    unit.move(node_key, row, TaskState.WORKING)


def heard(unit: UnitOfWork, command: Heard) -> None:
    """Send a second cancel of an attempt that an agent still runs, although its node ended or a newer attempt began.

    The first cancel may be lost. The cancel names the last publication that is out of date, and so never ends a newer
    attempt.
    """
    node_key, row = command.node_key, unit.node(command.node_key)
    if row is None:
        return
    told_its_end = row.state is TaskState.COMPLETED and row.fence == command.fence
    if row.state.terminal and not told_its_end:
        unit.effects.cancels.append((node_key, row.publication))
    elif row.state is TaskState.WORKING and command.fence < row.fence and row.publication > 1:
        unit.effects.cancels.append((node_key, row.publication - 1))


def claimed(unit: UnitOfWork, command: Claimed) -> Claim:
    """Grant an agent's claim of a workflow task, as a rule under a new fence, or answer that its delivery is stale.

    A task that is too late, or has no attempt left, ends.

    A newer publication or the node's end makes the delivery stale. Otherwise it runs with a new fence, so that reports
    of the agent that had it before are refused. That agent may have died of the task, or only have lost its connection:
    the attempt is the same one until its death is proven (`agent_fate`), and the task runs apart meanwhile. An agent
    that got its grant in this same transaction cannot have started: claims of agents that are gone lie in the queue
    when no dispatcher answered for a while. A repeated claim of the same agent changes nothing, since the agent may
    work by the first answer already, and counts as a sign of life. The agent may wait for a slot, so its timeout runs
    from its report of the start.
    """
    node_key = command.node_key
    row, run = unit.node(node_key), unit.run(node_key.workflow)
    if row is None or run is None:
        return Claim(Verdict.STALE, known=False)
    if row.state not in UNDER_WAY or command.publication < row.publication:
        return Claim(Verdict.STALE)
    if limits.too_late(unit, row):
        advance.fail(unit, node_key, row, limits.by_our_clock(unit, limits.START_TIMEOUT))
        return Claim(Verdict.STALE)
    if row.state is TaskState.WORKING and row.agent == command.agent:
        return _granted(unit, node_key, row)
    _lived(row, [fence for agent, fence in row.doubted if agent == command.agent])
    begun = row.state is TaskState.WORKING and node_key not in unit.granted
    if not _may_begin(unit, node_key, row, command, begun=begun):
        return Claim(Verdict.WAIT if row.doubted else Verdict.STALE)
    if begun:
        doubt(unit, node_key, row)
    unit.granted.add(node_key)
    unit.advance_fence(row)
    row.agent, row.started_ms = command.agent, unit.now_ms
    return _granted(unit, node_key, row)


def _granted(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> Claim:
    unit.move(node_key, row, TaskState.WORKING)
    return Claim(Verdict.RUN, row.fence, row.attempt, row.suspect or bool(row.doubted))


def _lived(row: NodeRecord, fences: Collection[int]) -> None:
    """End the doubts about attempts whose agent lived on; as a rule they use up no attempt."""
    row.doubted = [entry for entry in row.doubted if entry[1] not in fences]
    row.attempt += sum(not is_free(row) for _ in fences)


def _may_begin(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, command: Claimed, *, begun: bool) -> bool:
    """Tell whether a claim may be granted, by the attempts of the policy, if each agent that is in doubt has died.

    If not, and an agent is in doubt, the claim has to wait for the proof; else the node ends, as its last attempt did.
    `begun`: another agent has begun the task, and is in doubt from now on if the claim has to wait.
    """
    own, doubted = _own_policy(unit, node_key), {fence for _, fence in row.doubted}
    max_attempts = command.max_attempts if own is None else own.max_attempts
    in_doubt = doubted | {row.fence} if begun else doubted
    if row.attempt + len(in_doubt) <= max_attempts:
        return True
    why = why_lost(unit, node_key, row)
    if not (in_doubt or row.suspect or why.reason in UNREPORTED):
        return True  # the last attempt's agent, which lived, has reported that another one follows
    if in_doubt - doubted:
        row.doubted = [*row.doubted, [row.agent, row.fence]]
        unit.move(node_key, row, row.state)
    elif not in_doubt:
        row.attempt = max_attempts
        advance.fail(unit, node_key, row, why, state=_state_of(why), said=why is not LOST_TOO_OFTEN)
    return False


def agent_fate(unit: UnitOfWork, command: AgentFate) -> None:
    """Record whether an agent, from which another one took a node's task over, lives; its death counts as an attempt.

    An agent that still has the node's present attempt keeps it. One that lives without it has lost the delivery, so the
    task is published again. Of an ended node, only the history changes.
    """
    node_key, row = command.node_key, unit.node(command.node_key)
    fences = [] if row is None else [fence for agent, fence in row.doubted if agent == command.agent]
    if row is None or not fences:
        return
    holds = row.state is TaskState.WORKING and row.agent == command.agent and row.fence in fences
    if not command.lives:
        died = [fence for fence in fences if not (holds and fence == row.fence)]
        for fence in died:
            mark_died(unit, node_key, fence)
            say_failed(unit, node_key, row, DIED, agent=command.agent)
        if row.state.terminal:
            return
        row.attempt, row.suspect = row.attempt + len(died), row.suspect or bool(died)
    elif row.state.terminal:
        return
    else:
        _lived(row, [fence for fence in fences if not (holds and fence == row.fence)])
    row.doubted = [entry for entry in row.doubted if entry[0] != command.agent]
    if holds and not command.has_task:
        reason = DELIVERY_LOST if command.lives else DIED
        lost(unit, Lost(node_key, row.publication, command.agent, reason))
    else:
        unit.move(node_key, row, row.state)


def _has_another(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, reason: Failure) -> bool:
    """Record why an attempt is lost; tell whether another attempt follows, and if not set the node to dead.

    By a policy that only agents know, the next agent's claim decides whether another one follows.
    """
    write_attempt(unit, node_key, row, "lost", reason)
    if reason in (DELIVERY_LOST, INTERRUPTED):
        if is_free(row):
            return True
        reason = LOST_TOO_OFTEN
    own = _own_policy(unit, node_key)
    if own is not None and row.attempt >= own.max_attempts:
        advance.fail(unit, node_key, row, reason, state=TaskState.DEAD)
        return False
    say_failed(unit, node_key, row, reason)
    row.attempt += 1
    row.suspect = True
    return True


def lost(unit: UnitOfWork, command: Lost) -> None:
    """Publish a node's lost task again unless it moved on; end the node if its workflow is over or no attempt is left.

    Nothing is lost when another agent has the task by now: it may have begun during the search.
    """
    node_key = command.node_key
    row, run = unit.node(node_key), unit.run(node_key.workflow)
    if row is None or run is None or row.state not in UNDER_WAY or row.publication != command.publication:
        return
    if row.agent != command.agent:
        return
    if advance.is_over(run):
        advance.cancel_node(unit, node_key, row)
        return
    if row.state is TaskState.WORKING:
        row.doubted = [entry for entry in row.doubted if entry[1] != row.fence]
        if not _has_another(unit, node_key, row, command.reason):
            return
        limits.cancel_timeout(unit, node_key, row)
    republish.publish(unit, node_key, row)
