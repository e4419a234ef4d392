"""The changes of a handoff: it is requested, accepted, declined or withdrawn, or its time is over.

A handoff belongs to the shard of the task's workflow, so the acceptance, the task's fence, its locks and its context
change in one transaction. Until then the owner keeps the task: whatever else happens, it goes on under its fence. The
agents are asked one after the other. Each request can be repeated, and comes too late without harm: what decides is the
state of the handoff, and whether its owner still has the task under the fence of the request.

::

    requested ──accept──► accepted        the task is another agent's
        ├──all declined──► declined ┐
        ├──time is over──► expired  ├──► the task stays with its owner
        └──withdraw──► withdrawn    ┘
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from coditect.collaboration.handoffs import HandoffState
from coditect.errors import Conflict, InputError, InvalidTask, NotFound, Retryable, TooLarge
from coditect.model.capability import check_capability_name
from coditect.model.ids import AgentId
from coditect.model.result import Failure
from coditect.wire import control_messages, routing
from coditect.wire.control import Started, Verb
from coditect.wire.json import loads
from coditect.wire.tasks import has_claims
from coditect.wire.workflow_tasks import HandoffOffer
from coditect.workflow.states import TaskState
from dispatcher.coordination import locks
from dispatcher.coordination.table import Table
from dispatcher.ledger import answers, keyspace, timers, versions
from dispatcher.ledger.commands import Began
from dispatcher.ledger.effects import NodeKey, OutgoingMessage
from dispatcher.ledger.handlers import finish
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes import advance, claim, limits
from dispatcher.ledger.nodes.approvals import judging
from dispatcher.ledger.nodes.attempts import UNDER_WAY, say_failed, write_attempt
from dispatcher.ledger.nodes.inputs import body_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import is_name, number, text
from dispatcher.store.transaction import Reads

EXPIRY = "handoff.expiry"
"""The kind of the timer at which an agent has not answered in time, or the whole handoff is over."""
ANSWER_MS = 10_000
"""How long an agent is awaited before the next one is asked; it may still accept later."""
TIMEOUT_MS = (1_000, 24 * 3_600_000)
"""The shortest and the longest time of a handoff, in milliseconds."""
MOST_HOPS = 8
"""How often one task changes hands at most."""
MOST_REQUESTS = 40
"""How many handoffs of one task may be requested at most, since all of them are kept."""
MOST_CANDIDATES = 20
LONGEST_AGENT_BYTES = 200
"""The most bytes of an agent's name: the names of its queues are longer, and AMQP limits their length."""
LONGEST_HANDOFF_TEXT_BYTES = 1_000
LONGEST_ANSWER_BYTES = 500
"""The most bytes kept of an agent's reason to decline: the reasons of all agents fit into one row with the context."""
MOST_CONTEXT_BYTES = 64_000
MOST_INPUT_BYTES = 256_000
"""The largest input in bytes that an offer carries; a larger one is left out."""
MAX_HANDOFFS_PAGE = 500
MAX_NUMBER_DIGITS = 10
NO_ANSWER: Final = "it did not answer in time"


@dataclass(slots=True)
class HandoffRecord:
    """A request to hand a task off: who has the task, who is asked, what they said, and how it ended."""

    workflow: str
    node: str
    number: int
    ticket: str
    """The id that the owner gave the request; a repeated request has the same."""
    to: str
    """The agent or the capability that the owner named."""
    capability: str
    owner: str
    """The agent that has the task until another one accepts."""
    fence: int
    """The fence under which the owner has the task; a handoff under an older one is void."""
    reason: str
    context: Any
    reply_to: str
    begun_ms: int
    until_ms: int
    state: str = HandoffState.REQUESTED
    waiting: list[str] = field(default_factory=list)
    """The agents that are asked next, in this order."""
    asked: list[list[Any]] = field(default_factory=list)
    """The agents that were asked: agent, when, and why it declined; an empty reason while it has not answered."""
    ended_ms: int = 0
    by: str = ""
    """The agent that accepted the handoff, or the one that withdrew it."""
    why: str = ""
    """Why the handoff ended without a new owner."""

    @property
    def node_key(self) -> NodeKey:
        """The key of the task's node."""
        return NodeKey(self.workflow, self.node)

    @property
    def id(self) -> str:
        """The id of the handoff: the task's id, a dot, and the handoff's number among those of the task."""
        return f"{self.node_key.task_id}.{self.number}"

    @property
    def is_open(self) -> bool:
        """True until the handoff is accepted, declined by all, expired or withdrawn."""
        return self.state == HandoffState.REQUESTED

    def as_json(self, *, whole: bool = True) -> dict[str, Any]:
        """Return the handoff as JSON values for answers to requests, with its context only if `whole`."""
        asked = [{"agent": agent, "at_ms": at_ms, "declined": why} for agent, at_ms, why in self.asked]
        plain = ("state", "to", "capability", "owner", "fence", "reason", "begun_ms", "until_ms", "ended_ms")
        fields = {name: getattr(self, name) for name in (*plain, "by", "why", "waiting")}
        place = {"handoff": self.id, "task": self.node_key.task_id, "workflow": self.workflow}
        return place | fields | {"asked": asked, "context": self.context if whole else None}


HANDOFF_TABLE = Table(keyspace.HANDOFFS, versions.HANDOFF, HandoffRecord, keys=3)


def _node_of(handoff: str) -> tuple[NodeKey, int]:
    """Split a handoff's id; return the key of the task's node, and the handoff's number among those of the task.

    Raises:
        NotFound: when the text is no such id.
    """
    task, _, number = handoff.rpartition(".")
    workflow, _, node = task.partition(":")
    if not (workflow and node and number.isascii() and number.isdigit() and len(number) < MAX_NUMBER_DIGITS):
        raise _unknown(handoff)
    return NodeKey(workflow, node), int(number)


def _read(tr: Reads, handoff: str) -> HandoffRecord:
    node_key, number = _node_of(handoff)
    found = HANDOFF_TABLE.read(tr, *node_key, number)
    if found is None:
        raise _unknown(handoff)
    return found


def _unknown(handoff: str) -> NotFound:
    fix = "coditect task handoff list shows those that are kept, each as long as its workflow"
    return NotFound("There is no such handoff, or it is not kept any more", handoff=handoff[:300], fix=fix)


def _last(tr: Reads, node_key: NodeKey) -> HandoffRecord | None:
    return next(iter(HANDOFF_TABLE.every(tr, *node_key, limit=1, reverse=True)), None)


_name = partial(text, longest=LONGEST_HANDOFF_TEXT_BYTES)


def request(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Offer a running task to the first agent that the request names; a repeat only returns the last handoff.

    Without a `fence` the request comes from others than the task's owner, in whose name it speaks.

    Raises:
        NotFound: when there is no such task.
        Retryable: when others request it, and no agent has reported yet that it has started the task.
        InputError: when the task is another attempt's by now, or was handed off too often; a field is wrong.
        Conflict: when the task is being handed off already.
        TooLarge: when the context is over the limit.
    """
    node_key = NodeKey(text(body, "workflow"), text(body, "node"))
    row, ticket, before = unit.node(node_key), _name(body, "ticket"), _last(unit.tr, node_key)
    if row is None or unit.call(node_key) is None:
        raise NotFound("There is no such task", task=node_key.task_id, fix="hand off a task that this agent runs")
    once = f"handoff {ticket}"
    if before is not None and (before.ticket == ticket or answers.ended(unit.tr, unit.shard, once) is not None):
        return before.as_json()
    _check(unit, node_key, row, body)
    if before is not None and before.is_open:
        if before.fence == row.fence:
            raise Conflict("The task is being handed off already", handoff=before.id, fix="wait until that has ended")
        _close(unit, before, HandoffState.EXPIRED, why="its owner lost the task")
    _note_start(unit, node_key, row, _name(body, "agent"))
    handoff = _made(unit, node_key, row, body, 1 if before is None else before.number + 1)
    facts = {"to": handoff.to, "capability": handoff.capability, "reason": handoff.reason, "hop": row.handoffs + 1}
    answers.end_ticket(unit.tr, unit.shard, once, {}, now_ms=unit.now_ms)
    _say(unit, handoff, "requested", **facts)
    _ask_next(unit, row, handoff)
    return handoff.as_json()


def _check(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, body: Body) -> None:
    if not _has_task(row, body) or advance.is_over(unit.run(node_key.workflow)):
        if body.get("fence") is None:
            agent, fix = _name(body, "agent"), "coditect task get names the agent that runs it"
            raise InputError("This agent does not run the task", agent=agent, task=node_key.task_id, fix=fix)
        fix = "let the handler end: its result would be refused"
        raise InputError("The task has ended, or another attempt has it by now", task=node_key.task_id, fix=fix)
    last = _last(unit.tr, node_key)
    if row.handoffs >= MOST_HOPS or (last is not None and last.number >= MOST_REQUESTS):
        fix = "finish it here, or fail it"
        limits = {"most_hops": MOST_HOPS, "most_requests": MOST_REQUESTS}
        raise InputError("The task was handed off too often", task=node_key.task_id, **limits, fix=fix)


def _has_task(row: NodeRecord, body: Body) -> bool:
    """Tell whether the owner that a request names runs the task, under the fence of the request if it gives one."""
    fence = body.get("fence")
    if fence is not None:
        return row.state in UNDER_WAY and bool(fence == row.fence)
    if row.state is TaskState.PUBLISHED:  # before the report of the start it is not known who runs it
        raise Retryable("The task is not reported as started yet", fix="repeat the request")
    return row.state is TaskState.WORKING and row.agent == _name(body, "agent")


def _note_start(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, agent: str) -> None:
    """Note that the agent that requests a handoff runs the task, if the report of its start has not come yet."""
    if row.state is TaskState.PUBLISHED:
        now_ms, publication = unit.now_ms, row.publication
        started = Started(node_key.workflow, node_key.node, row.fence, publication, agent, row.attempt, now_ms)
        finish.began(unit, Began(started))


def _made(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord, body: Body, place: int) -> HandoffRecord:
    call = unit.call(node_key)
    assert call is not None
    shortest, longest = TIMEOUT_MS
    handoff = HandoffRecord(
        *node_key,
        place,
        _name(body, "ticket"),
        _name(body, "to"),
        check_capability_name(body["capability"]) if body.get("capability") else call.capability,
        _name(body, "agent"),
        row.fence,
        _line(body, LONGEST_HANDOFF_TEXT_BYTES),
        body.get("context"),
        _name(body, "reply_to", ""),
        unit.now_ms,
        unit.now_ms + min(max(number(body, "timeout_ms", 60_000), shortest), longest),
        waiting=_candidates(body),
    )
    if (size := HANDOFF_TABLE.checked_size(handoff)) > MOST_CONTEXT_BYTES:
        fix = "put the large part into shared state or a blob, and say where it is"
        raise TooLarge("A context is too large for a handoff", bytes=size, limit=MOST_CONTEXT_BYTES, fix=fix)
    return handoff


def _candidates(body: Body) -> list[str]:
    named = body.get("candidates")
    if not isinstance(named, list) or not all(is_name(name, LONGEST_AGENT_BYTES) for name in named):
        raise InvalidTask("A handoff names the agents to ask", field="candidates", fix="a list of agent ids")
    return [name for name in dict.fromkeys(named) if name != body.get("agent")][:MOST_CANDIDATES]


def accept(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Move the task to an agent that was asked, if the handoff is open and in time, and its owner still has the task.

    A repeated or late acceptance moves nothing: the answer tells whose the task is.

    Raises:
        NotFound: when the handoff is unknown.
        InputError: when the agent was not asked.
    """
    handoff, agent, _ = _asked(unit, body)
    row = unit.node(handoff.node_key)
    if handoff.is_open and (row is None or _is_void(unit, row, handoff)):
        _close(unit, handoff, HandoffState.EXPIRED, why="its owner lost the task, or the task ended")
    elif handoff.is_open and handoff.until_ms <= unit.now_ms:
        _close(unit, handoff, HandoffState.EXPIRED, why="no agent accepted in time")
    elif handoff.is_open and row is not None:
        _end_execution(unit, row, handoff, agent)
        move(unit, row, handoff, agent)
        _close(unit, handoff, HandoffState.ACCEPTED, by=agent)
    return handoff.as_json(whole=False)


def _asked(unit: UnitOfWork, body: Body) -> tuple[HandoffRecord, str, list[Any]]:
    """Return the handoff and the agent that a request names, and the entry of that agent among those that were asked.

    Raises:
        NotFound: when the handoff is unknown.
        InputError: when the agent was not asked.
    """
    handoff, agent = _read(unit.tr, text(body, "handoff")), _name(body, "agent")
    entry = next((entry for entry in handoff.asked if entry[0] == agent), None)
    if entry is None:
        raise InputError("This agent was not asked to take the task over", handoff=handoff.id, agent=agent)
    return handoff, agent, entry


def _end_execution(unit: UnitOfWork, row: NodeRecord, handoff: HandoffRecord, agent: str) -> None:
    """Tell the owner of a task to end its execution, unless the owner requested the handoff and waits for its end."""
    if not handoff.reply_to:
        why, task = f"handed off to {agent}", handoff.node_key.task_id
        message = control_messages.cancel(task, reason=why, publication=row.publication, handed_off=True)
        address = routing.mailbox_key(AgentId(handoff.owner))
        unit.effects.messages.append(OutgoingMessage(message, routing.AGENTS, address))


def _is_void(unit: UnitOfWork, row: NodeRecord, handoff: HandoffRecord) -> bool:
    """Tell whether the agent that offered a task has lost it since: another attempt has it, or it has ended."""
    moved = row.state not in UNDER_WAY or row.fence != handoff.fence
    return moved or advance.is_over(unit.run(handoff.workflow))


def decline(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Note why an agent does not take the task, and ask the next one; after the last one the owner keeps it.

    Raises:
        NotFound: when the handoff is unknown.
        InputError: when the agent was not asked.
    """
    handoff, agent, entry = _asked(unit, body)
    if handoff.is_open and entry[2] in ("", NO_ANSWER):
        waited, entry[2] = not entry[2], _line(body, LONGEST_ANSWER_BYTES) or "no reason"
        _say(unit, handoff, "declined", by=agent, why=entry[2], left=len(handoff.waiting))
        if waited:
            _ask_next(unit, unit.node(handoff.node_key), handoff)
        else:
            HANDOFF_TABLE.write(unit.tr, handoff)
    return handoff.as_json(whole=False)


def withdraw(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """End an open handoff, so that the task stays with its owner; one that has ended stays as it is.

    Raises:
        NotFound: when the handoff is unknown.
    """
    handoff = _read(unit.tr, text(body, "handoff"))
    if handoff.is_open:
        _close(unit, handoff, HandoffState.WITHDRAWN, by=_name(body, "by"), why=_line(body, LONGEST_ANSWER_BYTES))
    return handoff.as_json()


def expired(unit: UnitOfWork, timer: Timer) -> None:
    """Ask the next agent when one has not answered in time, or end the handoff when its time is over."""
    node_key, number = _node_of(timer.node)
    handoff = HANDOFF_TABLE.read(unit.tr, *node_key, number)
    if handoff is None or not handoff.is_open:
        return
    if handoff.until_ms <= unit.now_ms:
        _close(unit, handoff, HandoffState.EXPIRED, why="no agent accepted in time")
        return
    for entry in handoff.asked:
        entry[2] = entry[2] or NO_ANSWER
    _ask_next(unit, unit.node(handoff.node_key), handoff)


def _ask_next(unit: UnitOfWork, row: NodeRecord | None, handoff: HandoffRecord) -> None:
    """Offer the task to the next candidate, and write the handoff; without one, the task stays with its owner."""
    if row is None or _is_void(unit, row, handoff):
        _close(unit, handoff, HandoffState.EXPIRED, why="its owner lost the task, or the task ended")
        return
    if not handoff.waiting:
        _close(unit, handoff, HandoffState.DECLINED, why=_why_declined(handoff))
        return
    agent = handoff.waiting.pop(0)
    handoff.asked.append([agent, unit.now_ms, ""])
    patient = not handoff.reply_to and not handoff.waiting  # nobody waits for the end, and nobody is left to ask
    due_ms = handoff.until_ms if patient else min(unit.now_ms + ANSWER_MS, handoff.until_ms)
    unit.set_timer(Timer("", handoff.id, EXPIRY, due_ms))
    HANDOFF_TABLE.write(unit.tr, handoff)
    message = control_messages.message(control_messages.HANDOFF, _offer(unit, row, handoff).as_json())
    unit.effects.messages.append(OutgoingMessage(message, routing.AGENTS, routing.mailbox_key(AgentId(agent))))


def _why_declined(handoff: HandoffRecord) -> str:
    if not handoff.asked:
        return "no other living agent has that name or capability"
    silent = any(why == NO_ANSWER for *_, why in handoff.asked)
    return "all declined or did not answer in time" if silent else "all declined"


def _offer(unit: UnitOfWork, row: NodeRecord, handoff: HandoffRecord) -> HandoffOffer:
    body = body_of(unit, handoff.node_key, row)
    whole = len(body) <= MOST_INPUT_BYTES and not has_claims(body)
    return HandoffOffer(
        handoff.id,
        handoff.node_key.task_id,
        handoff.capability,
        handoff.owner,
        handoff.reason,
        handoff.context,
        row.handoffs + 1,
        loads(body) if whole else None,
        whole,
    )


def _close(unit: UnitOfWork, handoff: HandoffRecord, state: str, *, by: str = "", why: str = "") -> None:
    """End a handoff, and tell its owner; if the message is lost, the owner asks a little later."""
    handoff.state, handoff.by, handoff.why, handoff.ended_ms = state, by, why, unit.now_ms
    timers.cancel(unit.tr, "", handoff.id, EXPIRY)
    HANDOFF_TABLE.write(unit.tr, handoff)
    unit.effects.push(handoff.reply_to, handoff.ticket, {"state": state})
    event = "declined" if state == HandoffState.DECLINED else "expired"
    if state == HandoffState.ACCEPTED:
        _say(unit, handoff, state, by=by, capability=handoff.capability)
    elif state != HandoffState.DECLINED or not handoff.asked:
        _say(unit, handoff, event, by=by, why=why or state, left=0)


def _say(unit: UnitOfWork, handoff: HandoffRecord, event: str, **facts: Any) -> None:
    known = {"handoff": handoff.id, "owner": handoff.owner, "workflow_id": handoff.workflow}
    unit.effects.say(f"agent.handoff.{event}", handoff.node_key.task_id, **known, **facts)


def _line(body: Body, longest: int) -> str:
    """Return the reason that a request gives as one printable line, cut to at most `longest` bytes."""
    text = "".join(letter for letter in " ".join(str(body.get("reason") or "").split()) if letter.isprintable())
    return text.encode()[:longest].decode(errors="ignore")


def _by_id(body: Body) -> str:
    return _node_of(text(body, "handoff"))[0].workflow


HANDED_OFF = "handed_off"
"""The status, and the reason, of an attempt at whose end another agent took the task over."""


def move(unit: UnitOfWork, row: NodeRecord, handoff: HandoffRecord, agent: str) -> None:
    """End the owner's attempt, and publish the task to the agent that accepted it, if the approval policy lets it go.

    It gets a new fence; the number of the attempt stays, since none has failed. Held locks go with the task. A task
    that is handed to another capability is judged by the approval policy as if it were new.
    """
    node_key = handoff.node_key
    message = f"to {agent}" + (f": {handoff.reason}" if handoff.reason else "")
    write_attempt(unit, node_key, row, HANDED_OFF, Failure(HANDED_OFF, "HandedOff", message))
    say_failed(unit, node_key, row, Failure(HANDED_OFF, "HandedOff", handoff.reason or message))
    limits.cancel_timeout(unit, node_key, row)
    locks.hand_over(unit, node_key.task_id, handoff.owner, agent)
    row.handoffs += 1
    declared = unit.definition(node_key).call
    is_own = declared is not None and declared.capability == handoff.capability
    row.capability = "" if is_own else handoff.capability
    call = unit.call(node_key)
    assert call is not None, "only a task is handed off"
    if judging.may_go(unit, node_key, row, call):
        claim.publish(unit, node_key, row, agent=agent)
    else:
        unit.advance_fence(row)  # what the former owner may still tell is late


def show(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a handoff by its id, or a task's last accepted handoff since the task began; `handoff` is null if none.

    Raises:
        NotFound: when the handoff is unknown, or its workflow is not kept any more.
    """
    if not body.get("task"):
        return _read(tr, text(body, "handoff")).as_json()
    node_key = _task(text(body, "task"))
    found = tr.get(STATUSES.pack(node_key))
    if found is None or not NodeRecord.unpack(found).handoffs:  # a redrive begins again
        return {"handoff": None}
    accepted = (one for one in HANDOFF_TABLE.every(tr, *node_key, reverse=True) if one.state == HandoffState.ACCEPTED)
    last = next(accepted, None)
    return {"handoff": None} if last is None else last.as_json()


def list_handoffs(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the handoffs without their contexts, ordered by their workflows' ids, so as a rule by time.

    Of a `task`, a `workflow`, or an `agent` that hands off, is asked or accepted; or only open ones.
    """
    within = () if not body.get("workflow") else (text(body, "workflow"),)
    prefix = _task(text(body, "task")) if body.get("task") else within
    handoffs, following = HANDOFF_TABLE.page(tr, body, *prefix, max_page=MAX_HANDOFFS_PAGE, large=True)
    agent = text(body, "agent", "")
    shown = [handoff.as_json(whole=False) for handoff in handoffs if _fits(handoff, agent, body)]
    return {"handoffs": shown, "next": following}


def _task(task: str) -> NodeKey:
    workflow, _, node = task.partition(":")
    if not (workflow and node):
        fix = "name a task of a workflow, such as 01890a5d-ac96-774b-bcce-b302099a8057:review"
        raise InvalidTask("This is no id of a task that the control plane keeps", task=task[:300], fix=fix)
    return NodeKey(workflow, node)


def _fits(handoff: HandoffRecord, agent: str, body: Body) -> bool:
    named = {handoff.owner, handoff.by, *(entry[0] for entry in handoff.asked)}
    return (not agent or agent in named) and (handoff.is_open or not body.get("open"))


HANDOFF_VERBS: Mapping[str, Query | ShardChange] = {
    # the ticket, and the state of the handoff, say whether it was done
    Verb.HANDOFF_REQUEST: ShardChange(request, deduplicated=False),
    Verb.HANDOFF_ACCEPT: ShardChange(accept, _by_id, deduplicated=False),
    Verb.HANDOFF_DECLINE: ShardChange(decline, _by_id, deduplicated=False),
    Verb.HANDOFF_WITHDRAW: ShardChange(withdraw, _by_id, deduplicated=False),
    Verb.HANDOFF_SHOW: Query(show),
    Verb.HANDOFF_LIST: Query(list_handoffs),
}
HANDOFF_TIMERS: Mapping[str, Callable[[UnitOfWork, Timer], None]] = {EXPIRY: expired}
