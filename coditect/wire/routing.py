"""Names on the broker: exchanges, queues and routing keys, and which queue a reply may go to.

::

    coditect.submit      <capability>.<level>   -> tasks.<capability>.<level>
    coditect.agents      <agent>, mail.<agent>  -> agent.<agent>.tasks, agent.<agent>.mail
                         next.<agent>           -> agent.<agent>.next
    coditect.replies     <reply queue>          -> reply.<process>
    coditect.retry.after.<ms>  (fanout)         -> retry.after.<ms> -> coditect.retry.back
    coditect.retry.back  <capability>.<level>   -> retry.back.<capability> -> coditect.tasks
    coditect.dead        <capability>.<level>   -> dead.<capability>
    coditect.results     <shard>                -> results.<shard>
    coditect.control     <shard>, any           -> control.<shard>, control
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from coditect.errors import InvalidTask
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.task import Task

SUBMIT = "coditect.submit"
TASKS = "coditect.tasks"
AGENTS = "coditect.agents"
REPLIES = "coditect.replies"
RESULTS = "coditect.results"
CONTROL = "coditect.control"
EVENTS = "coditect.events"
BROADCAST = "coditect.broadcast"
DEAD = "coditect.dead"
UNROUTED = "coditect.unrouted"
RETRY_BACK = "coditect.retry.back"

UNROUTED_QUEUE = "unrouted"
UNROUTED_NOTICES = "unrouted.notices"
DEAD_NOTICES = "dead.notices"

CONTROL_QUEUE = "control"

_SYSTEM_PREFIXES = (
    "tasks.", "agent.", "results.", "retry.", "dead.", "control.", "unrouted.", "coditect.",
)  # fmt: skip
_SYSTEM_NAMES = frozenset({CONTROL_QUEUE, UNROUTED_QUEUE})


@dataclass(frozen=True, slots=True)
class Address:
    """Where a message goes: an exchange and a routing key."""

    exchange: str
    routing_key: str


def task_key(capability: str, priority: Priority) -> str:
    """The routing key of a task, e.g. ``code.review.p1``."""
    return f"{capability}.{priority.value}"


def key_of(task: Task) -> str:
    """The routing key of this task."""
    return f"{task.capability}.{task.priority.value}"


def parse_task_key(key: str) -> tuple[str, Priority]:
    """Capability and priority of a routing key; no level means P1.

    Raises: InvalidTask for an empty key.
    """
    capability, _, level = key.rpartition(".")
    if capability and level in ("p0", "p1", "p2"):
        return capability, Priority(level)
    if not key:
        raise InvalidTask("A task's routing key is <capability>.<p0|p1|p2>", given=key)
    return key, Priority.P1


def task_queue(capability: str, priority: Priority) -> str:
    """The queue of one capability and level."""
    return f"tasks.{capability}.{priority.value}"


def queue_key(queue: str) -> str | None:
    """The routing key of a capability's queue, whatever key its messages came by; None for any other queue."""
    return queue.removeprefix("tasks.") if queue.startswith("tasks.") else None


def queue_for(exchange: str, key: str) -> str | None:
    """The queue that a key of this exchange is for, if it is for one: there must be a binding when there is the queue.

    None where that depends on who listens, or where a fanout leads.
    """
    if exchange in (SUBMIT, TASKS):
        capability, level = parse_task_key(key or "-")
        return task_queue(capability, level)
    if exchange == REPLIES:
        return key
    if exchange == RESULTS:
        return f"results.{key}"
    if exchange == CONTROL:
        return CONTROL_QUEUE if key == "any" else f"control.{key}"
    if exchange == DEAD:
        return dead_queue(parse_task_key(key or "-")[0])
    return None


def dead_queue(capability: str) -> str:
    """The dead letters of one capability."""
    return f"dead.{capability}"


def inbox_queue(agent_id: AgentId) -> str:
    """Tasks that prefer this agent."""
    return f"agent.{agent_id}.tasks"


def next_queue(agent_id: AgentId) -> str:
    """What follows on what this agent has just ended, while it has nothing else to do."""
    return f"agent.{agent_id}.next"


def next_key(agent_id: AgentId) -> str:
    """The routing key of one agent's `next_queue` on `coditect.agents`."""
    return f"next.{agent_id}"


def hands_on(queue: str) -> bool:
    """Whether the queue is some agent's own: it hands on what that agent does not take."""
    return queue.startswith("agent.") and queue.endswith((".tasks", ".next"))


def mail_queue(agent_id: AgentId) -> str:
    """Cancels, pings and broadcasts for this agent."""
    return f"agent.{agent_id}.mail"


def mail_key(agent_id: AgentId) -> str:
    """The routing key of one agent's mail on `coditect.agents`."""
    return f"mail.{agent_id}"


def results_queue(shard: int) -> str:
    """What agents tell the owner of a shard; its key is the shard's number."""
    return f"results.{shard}"


def control_queue(shard: int) -> str:
    """Requests about the workflows of one shard; its key is the shard's number."""
    return f"control.{shard}"


def retry_exchange(delay_ms: int) -> str:
    """The exchange of one rung of the retry ladder."""
    return f"coditect.retry.after.{delay_ms}"


def retry_queue(delay_ms: int) -> str:
    """The queue of one rung of the retry ladder."""
    return f"retry.after.{delay_ms}"


def retry_back_queue(capability: str) -> str:
    """Where a capability's tasks come out of the retry ladder; there they wait while they are not taken."""
    return f"retry.back.{capability}"


@lru_cache(maxsize=4096)
def reply_address(reply_to: str | None) -> Address | None:
    """Where the answer to this `reply_to` goes; None when none is wanted or the name is the system's own.

    `reply.*` goes through `coditect.replies`, any other name through the default exchange.
    """
    if not reply_to or len(reply_to.encode(errors="replace")) > 255:
        return None
    if reply_to in _SYSTEM_NAMES or reply_to.startswith(_SYSTEM_PREFIXES):
        return None
    if reply_to.startswith("reply."):
        return Address(REPLIES, reply_to)
    return Address("", reply_to)
