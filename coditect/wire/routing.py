"""The names of exchanges, queues and routing keys on the broker, and the rule for reply queues.

The table of what leads where stands in `coditect.broker.topology`.
"""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from coditect.errors import CoditectError, InputError, InvalidTask, SetupError
from coditect.model.capability import Priority, check_capability_name
from coditect.model.ids import AgentId, name_in
from coditect.model.message import HeaderTable, Message
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
_OTHERS_NAME = re.compile(r"(?:next|mail)\..*|(?:monitor-|pings-)?dispatcher-\d+-[0-9a-f]{8}", re.DOTALL)
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


def agent_replies(agent_id: AgentId) -> str:
    """Return the name of an agent's reply queue; those of chosen ids are apart, since a client may have the same name.

    An id that was not chosen ends with a hyphen and eight hex digits.
    """
    return f"reply.{agent_id}" if name_in(agent_id) else f"reply.agent.{agent_id}"


def process_of(reply_to: str) -> str:
    """Return the name of the process that has a reply queue: an agent's id or a client's name."""
    return reply_to.removeprefix("reply.").removeprefix("agent.")


def is_others_name(agent_id: str) -> bool:
    """Tell whether an agent of this id would have the routing keys of another agent, or the name of a dispatcher."""
    return _OTHERS_NAME.fullmatch(agent_id) is not None


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


CAPABILITY = "x-coditect-capability"


def pinned_message(message: Message, task: Task) -> Message:
    """Build the message of a task for one agent's own queue, with a CC key that leads on to the capability's queue."""
    return Message(
        body=message.body,
        headers={**message.headers, "CC": [key_of(task)], CAPABILITY: task.capability},
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        type=message.type,
    )


def task_target(headers: HeaderTable, routing_key: str) -> tuple[str, Priority]:
    """Return the capability and priority of a task message: from its routing key, or a pinned task's first CC key.

    Raises:
        InvalidTask: when the capability is not a valid name.
    """
    carbon = headers.get("CC") if headers else None
    if isinstance(carbon, list) and carbon and isinstance(carbon[0], str) and headers.get(CAPABILITY):
        return target_of(carbon[0])
    return target_of(routing_key)


@lru_cache(maxsize=4096)
def target_of(key: str) -> tuple[str, Priority]:
    """Split a routing key into a capability and a priority.

    Raises:
        InvalidTask: when the capability is not a valid name.
    """
    capability, priority = parse_task_key(key)
    try:
        return check_capability_name(capability), priority
    except InputError as error:
        raise InvalidTask(error.sentence, **error.facts) from error


# The check of reply addresses: to which queues a process may send results.
#
# The publisher of a task names the queue for the result, and the agent may write to more queues than the publisher may.
# So a name outside of Coditect's own reply queues is answered only if it fits a pattern of `CODITECT_ANSWER_QUEUES`.
# Coditect's own reply queues take anything: a reply counts there by the unguessable correlation id of its request.

ANSWER_QUEUES = "answers*,*answers"
"""The default patterns of queue names that results may go to: names that show this purpose."""
_MADE_UP = ("amq.gen-", "amq.rabbitmq.reply-to.")
"""Prefixes of queue names that the broker generates and that strangers cannot guess."""
REFUSED_SECONDS = 60.0
"""How long a process sends no result to foreign queues after the broker refused one, which closed the channel."""


class ReturnAddresses:
    """The reply queues that a process may send results to, by name patterns and by the broker's permissions."""

    def __init__(self, patterns: str = ANSWER_QUEUES) -> None:
        """Permit results to Coditect's and broker-named reply queues, and to names that fit comma-separated patterns.

        In a pattern, `*` stands for any text.
        """
        self._patterns = tuple(pattern.strip() for pattern in patterns.split(","))
        self.find = lru_cache(maxsize=4096)(self._find)
        """The cached lookup of a `reply_to`'s address; None when no result is wanted, or the queue is not permitted."""
        self.check = lru_cache(maxsize=4096)(self._check)
        """The cached check that results may go to a `reply_to`; raises InvalidTask for a forbidden queue."""
        self._closed_until = -math.inf

    def _find(self, reply_to: str | None) -> Address | None:
        address = reply_address(reply_to)
        if address is None or address.exchange:
            return address
        name = address.routing_key
        declared = name.startswith(_MADE_UP) or any(fnmatchcase(name, pattern) for pattern in self._patterns)
        return address if declared else None

    def _check(self, reply_to: str | None) -> None:
        if reply_to and self.find(reply_to) is None:
            raise InvalidTask(
                "The reply_to is no queue that results may be written to",
                reply_to=reply_to[:255],
                fix="name it answers.SOMETHING, or add it to CODITECT_ANSWER_QUEUES of agents and dispatchers",
            )

    def reachable(self, address: Address) -> bool:
        """Tell whether results may go to an address; for 60 s after a refusal by the broker, only Coditect's own may.

        Coditect's own reply queues stay reachable; all other queues are unreachable for these `REFUSED_SECONDS`.
        """
        return bool(address.exchange) or asyncio.get_running_loop().time() >= self._closed_until

    def refused(self, address: Address, error: CoditectError) -> bool:
        """Tell whether a publish failed for lack of permission to write to a reply queue; remember such a failure.

        If so, `reachable` is False for all foreign queues for `REFUSED_SECONDS`.
        """
        if address.exchange or not isinstance(error, SetupError):
            return False
        self._closed_until = asyncio.get_running_loop().time() + REFUSED_SECONDS
        return True
