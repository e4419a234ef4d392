"""The names of exchanges, queues and routing keys on the broker, and the rule for reply queues.

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

import re
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
    "tasks.", "agent.", "results.", "retry.", "dead.", "control.", "trigger.", "unrouted.", "coditect.",
)  # fmt: skip
_OWN = re.compile(
    r"agent\.(?P<agent>.+)\.(?:tasks|next|mail)|(?:reply\.(?:monitor|pings)-|events\.)(?P<dispatcher>dispatcher-\d+-[0-9a-f]{8})"
)
_SHARED = re.compile(r"(?:retry\.back|dead)\.(?P<capability>.+)")
_SYSTEM_NAMES = frozenset({CONTROL_QUEUE, UNROUTED_QUEUE})


@dataclass(frozen=True, slots=True)
class Address:
    """The destination of a message: an exchange and a routing key."""

    exchange: str
    routing_key: str


def task_key(capability: str, priority: Priority) -> str:
    """Return the routing key of a capability and priority, e.g. ``code.review.p1``."""
    return f"{capability}.{priority.value}"


def key_of(task: Task) -> str:
    """Return the routing key of a task, by its capability and priority."""
    return f"{task.capability}.{task.priority.value}"


def parse_task_key(key: str) -> tuple[str, Priority]:
    """Split a task's routing key into capability and priority; without a level the priority is P1.

    Raises:
        InvalidTask: when the key is empty.
    """
    capability, _, level = key.rpartition(".")
    if capability and level in ("p0", "p1", "p2"):
        return capability, Priority(level)
    if not key:
        raise InvalidTask("A task's routing key is <capability>.<p0|p1|p2>", given=key)
    return key, Priority.P1


def task_queue(capability: str, priority: Priority) -> str:
    """Return the name of the task queue of one capability and priority."""
    return f"tasks.{capability}.{priority.value}"


def queue_key(queue: str) -> str | None:
    """Return the routing key that leads to a capability's task queue; None for any other queue."""
    return queue.removeprefix("tasks.") if queue.startswith("tasks.") else None


def capability_of(queue: str) -> str | None:
    """Return the capability in the name of one of its queues: of tasks, of passed retries or of dead letters."""
    if (key := queue_key(queue)) is not None:
        return parse_task_key(key)[0]
    found = _SHARED.fullmatch(queue)
    return found["capability"] if found else None


def queue_for(exchange: str, key: str) -> str | None:
    """Return the queue that a publish to an exchange with a routing key reaches; None when the names do not tell.

    None where the queue depends on bindings by listeners, or where the exchange is a fanout.
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
    """Return the name of the queue of one capability's dead letters."""
    return f"dead.{capability}"


def inbox_queue(agent_id: AgentId) -> str:
    """Return the name of an agent's inbox, the queue of tasks that are pinned to this agent process."""
    return f"agent.{agent_id}.tasks"


def next_queue(agent_id: AgentId) -> str:
    """Return the name of an agent's queue of follow-up tasks, which the agent takes while it has nothing else to do."""
    return f"agent.{agent_id}.next"


def next_key(agent_id: AgentId) -> str:
    """Return the routing key, on `coditect.agents`, of an agent's queue of follow-up tasks."""
    return f"next.{agent_id}"


def hands_on(queue: str) -> bool:
    """Tell whether a queue is an agent's own task queue, whose untaken tasks move on to the capability's queue."""
    return queue.startswith("agent.") and queue.endswith((".tasks", ".next"))


def mailbox_queue(agent_id: AgentId) -> str:
    """Return the name of an agent's mailbox, the queue of control messages to this agent process."""
    return f"agent.{agent_id}.mail"


def own_queues(agent_id: AgentId) -> tuple[str, ...]:
    """Return the names of an agent's inbox, its queue of follow-up tasks, and its mailbox."""
    return inbox_queue(agent_id), next_queue(agent_id), mailbox_queue(agent_id)


def owner_of(queue: str) -> str:
    """Return the id in the name of an agent's or dispatcher's own queue, such as an agent's inbox; empty for others.

    An agent's are its inbox, its queue of follow-up tasks and its mailbox.
    """
    found = _OWN.fullmatch(queue)
    return found["agent"] or found["dispatcher"] if found else ""


def mailbox_key(agent_id: AgentId) -> str:
    """Return the routing key, on `coditect.agents`, of an agent's mailbox."""
    return f"mail.{agent_id}"


def results_queue(shard: int) -> str:
    """Return the name of a shard's queue of results and reports from agents; the routing key is the shard's number."""
    return f"results.{shard}"


def is_results_queue(name: str) -> bool:
    """Tell whether a queue is a shard's queue of results and reports from agents."""
    return re.fullmatch(r"results\.\d+", name) is not None


def control_queue(shard: int) -> str:
    """Return the name of the queue of requests about one shard's workflows; the routing key is the shard's number."""
    return f"control.{shard}"


def trigger_queue(trigger: str) -> str:
    """Return the name of a trigger's queue of events."""
    return f"trigger.{trigger}"


def webhook_queue(webhook: str) -> str:
    """Return the name of a webhook's queue of events."""
    return f"webhook.{webhook}"


def retry_exchange(delay_ms: int) -> str:
    """Return the name of the exchange that leads to the retry-delay queue of the given delay."""
    return f"coditect.retry.after.{delay_ms}"


def retry_queue(delay_ms: int) -> str:
    """Return the name of the retry-delay queue of the given delay."""
    return f"retry.after.{delay_ms}"


def retry_back_queue(capability: str) -> str:
    """Return the name of the queue in which a capability's tasks arrive after their retry delay.

    Tasks wait there while the capability's queues do not take them.
    """
    return f"retry.back.{capability}"


@lru_cache(maxsize=4096)
def reply_address(reply_to: str | None) -> Address | None:
    """Return the exchange and key for replies to a `reply_to`; None if it is missing, too long or a Coditect name.

    Too long is over 255 bytes. Coditect names are those of its own queues and keys, except its reply queues.

    `reply.*` goes through `coditect.replies`, any other name through the default exchange.
    """
    if not reply_to or len(reply_to.encode(errors="replace")) > 255:
        return None
    if reply_to in _SYSTEM_NAMES or reply_to.startswith(_SYSTEM_PREFIXES):
        return None
    if reply_to.startswith("reply."):
        return Address(REPLIES, reply_to)
    return Address("", reply_to)
