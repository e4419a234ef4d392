"""The comparison of the broker's topology with the wanted one, with fixes, and the export of definitions.

AMQP can create an entity but not change one, and it cannot list bindings. So a plan calls each exchange and queue the
same, missing (apply creates it) or different (with the fix). Missing bindings are found where the management API
lists them; apply declares all of them again, which is idempotent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from coditect.broker.port import Broker, Probe, ProbeVerdict
from coditect.broker.topology import Binding, Exchange, Queue, Topology, agent_queues, reply_queue
from coditect.model.ids import AgentId
from coditect.wire import routing

BINDINGS_NOTE = (
    "AMQP cannot read bindings: set CODITECT_MANAGEMENT_URL to compare them. Apply declares all of them again, which "
    "changes nothing that is there."
)


class PlannedBroker(Broker, Protocol):
    """The interface of a broker that can also compare a wanted exchange or queue with its own, as a plan needs."""

    async def probe(self, entity: Exchange | Queue) -> Probe:
        """Return whether the broker's exchange or queue is as wanted, missing or different; change nothing.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """


class DifferenceKind(StrEnum):
    """The kind of an entity in a topology plan: exchange or queue."""

    EXCHANGE = "exchange"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class TopologyDifference:
    """An argument in which the broker's exchange or queue differs; the broker names only the first such argument."""

    argument: str
    """The argument's name, for example ``x-message-ttl``; empty when the broker's text could not be read."""
    current: str | None
    """The argument's value at the broker; None when it is not set there."""
    wanted: str | None
    """The argument's wanted value; None when it should not be set."""
    text: str
    """The broker's own text about the difference."""


@dataclass(frozen=True, slots=True)
class TopologyStep:
    """An exchange or queue of a topology plan: whether it is as wanted, what differs, and how a person fixes that."""

    kind: DifferenceKind
    name: str
    verdict: ProbeVerdict
    difference: TopologyDifference | None = None
    fix: str = ""
    """The instructions by which a person removes the difference."""


@dataclass(frozen=True, slots=True)
class TopologyPlan:
    """The comparison of a topology with the broker, entity by entity in the order of declaration."""

    steps: tuple[TopologyStep, ...]
    bindings: int
    """The number of bindings that applying the plan declares again."""
    unbound: tuple[Binding, ...] | None = None
    """The bindings that the broker lacks, also for existing queues of agents and clients; None when not listable."""

    def of(self, verdict: ProbeVerdict) -> tuple[TopologyStep, ...]:
        """Return the plan's steps (exchanges and queues) with the given verdict: same, missing or different."""
        return tuple(step for step in self.steps if step.verdict is verdict)

    @property
    def clean(self) -> bool:
        """Tell whether every exchange and queue is as wanted, and no binding is known to be missing."""
        return not self.unbound and all(step.verdict is ProbeVerdict.SAME for step in self.steps)


async def make_plan(
    broker: PlannedBroker, topology: Topology, *, bound: frozenset[Binding] | None = None
) -> TopologyPlan:
    """Return how a topology differs from the broker's exchanges, queues and, if `bound` lists them, bindings.

    Nothing is changed.
    """
    entities: tuple[Exchange | Queue, ...] = (*topology.exchanges, *topology.queues)
    steps = [_step(entity, await broker.probe(entity)) for entity in entities]
    unbound = None if bound is None else _unbound(topology, bound)
    return TopologyPlan(tuple(steps), len(topology.bindings), unbound)


def _unbound(topology: Topology, bound: frozenset[Binding]) -> tuple[Binding, ...]:
    """Return the bindings that existing queues lack: of the topology, and of agents' queues and reply queues."""
    queues = {binding.queue for binding in bound if not binding.exchange}
    wanted = list(topology.bindings)
    for queue in sorted(queues):
        if queue.startswith("reply."):
            wanted += reply_queue(queue).bindings
        elif queue == routing.mailbox_queue(agent := AgentId(routing.owner_of(queue))):
            wanted += agent_queues(agent, slots=1).bindings
    return tuple(binding for binding in dict.fromkeys(wanted) if binding.queue in queues and binding not in bound)


async def apply_topology(broker: PlannedBroker, topology: Topology) -> TopologyPlan:
    """Declare what is missing and all bindings, leave what differs as it is, and return the plan made before.

    Idempotent. The plan's differing steps remain for a person.
    """
    plan = await make_plan(broker, topology)
    differing = {(step.kind, step.name) for step in plan.of(ProbeVerdict.DIFFERS)}
    await broker.declare(
        Topology(
            tuple(
                exchange for exchange in topology.exchanges if (DifferenceKind.EXCHANGE, exchange.name) not in differing
            ),
            tuple(queue for queue in topology.queues if (DifferenceKind.QUEUE, queue.name) not in differing),
            topology.bindings,
        )
    )
    return plan


def export_definitions(topology: Topology, *, vhost: str = "/") -> dict[str, object]:
    """Return exchanges, queues and bindings as a JSON-ready document for ``rabbitmqctl import_definitions``."""
    kept = {"durable": True, "auto_delete": False}
    return {
        "vhosts": [{"name": vhost}],
        "exchanges": [
            {"name": exchange.name, "vhost": vhost, "type": exchange.type.value}
            | kept
            | {"internal": False, "arguments": exchange.arguments}
            for exchange in topology.exchanges
        ],
        "queues": [
            {"name": queue.name, "vhost": vhost} | kept | {"arguments": queue.arguments} for queue in topology.queues
        ],
        "bindings": [
            {
                "source": binding.exchange,
                "vhost": vhost,
                "destination": binding.queue,
                "destination_type": "queue",
                "routing_key": binding.key,
                "arguments": {},
            }
            for binding in topology.bindings
        ],
    }


_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?:exchange|queue) '.*' in vhost '.*': "
    r"received (?P<received>.+?) but current is (?P<current>.+)",
    re.DOTALL,
)
_VALUE = re.compile(r"(?:the value )?'(?P<value>.*?)'(?: of type |$)", re.DOTALL)


def parse_difference(text: str) -> TopologyDifference:
    """Return the argument and both values that RabbitMQ's error 406 names; "" and None if its text is unknown.

    An example: ``inequivalent arg 'x-message-ttl' for queue 'retry.after.100' in vhost '/': received the value '100' of
    type 'signedint' but current is none``.
    """
    match = _INEQUIVALENT.search(text)
    if match is None:
        return TopologyDifference("", None, None, text)
    return TopologyDifference(match["argument"], _value(match["current"]), _value(match["received"]), text)


def _value(words: str) -> str | None:
    match = _VALUE.match(words.strip())
    if match is not None:
        return match["value"]
    return None if words.strip().startswith("none") else words.strip()


def _step(entity: Exchange | Queue, probe: Probe) -> TopologyStep:
    kind = DifferenceKind.QUEUE if isinstance(entity, Queue) else DifferenceKind.EXCHANGE
    if probe.verdict is not ProbeVerdict.DIFFERS:
        return TopologyStep(kind, entity.name, probe.verdict)
    difference = parse_difference(probe.text)
    return TopologyStep(kind, entity.name, probe.verdict, difference, _fix(entity, difference))


def _fix(entity: Exchange | Queue, difference: TopologyDifference) -> str:
    if isinstance(entity, Exchange):
        fix = (
            "An exchange's arguments cannot be changed. While no process publishes: "
            f"`rabbitmqadmin delete exchange name={entity.name}`, then `coditect topology apply`. "
            "Deleting it drops its bindings; apply binds ours again."
        )
    else:
        fix = (
            f"A queue's arguments cannot be changed. Stop its publishers, {_emptied(entity.name)}, "
            f"`rabbitmqctl delete_queue {entity.name}` (deleting drops what is still in it), "
            "then `coditect topology apply`."
        )
    policy = _policy(entity, difference)
    return f"{fix} {policy}" if policy else fix


def _emptied(queue: str) -> str:
    if queue == routing.UNROUTED_QUEUE or queue.startswith("dead."):
        return "`coditect dead redrive` or `discard` what is in it"
    return "let its consumers empty it"


_NUMERIC_POLICIES = {
    "x-message-ttl": "message-ttl",
    "x-expires": "expires",
    "x-max-length": "max-length",
    "x-delivery-limit": "delivery-limit",
}
_TEXT_POLICIES = {
    "x-dead-letter-exchange": "dead-letter-exchange",
    "x-dead-letter-routing-key": "dead-letter-routing-key",
    "x-dead-letter-strategy": "dead-letter-strategy",
    "x-overflow": "overflow",
    "alternate-exchange": "alternate-exchange",
}


def _policy(entity: Exchange | Queue, difference: TopologyDifference) -> str:
    """Return advice with a `rabbitmqctl set_policy` command for the wanted value; "" when no policy can help.

    An argument beats a policy; of two numbers the lower one holds. So a policy helps where the argument is absent, or
    where the code wants less.
    """
    argument, wanted, current = difference.argument, difference.wanted, difference.current
    if wanted is None:
        return ""
    if argument in _NUMERIC_POLICIES and wanted.isdecimal():
        if current is not None and not (current.isdecimal() and int(wanted) < int(current)):
            return ""
        definition = f'{{"{_NUMERIC_POLICIES[argument]}":{wanted}}}'
    elif argument in _TEXT_POLICIES and current is None:
        definition = f'{{"{_TEXT_POLICIES[argument]}":"{wanted}"}}'
    else:
        return ""
    apply_to = "queues" if isinstance(entity, Queue) else "exchanges"
    pattern = "^" + entity.name.replace(".", r"\.") + "$"
    return (
        "Without deleting, a policy does the same for this argument (the plan goes on showing it): "
        f"`rabbitmqctl set_policy --apply-to {apply_to} {entity.name} '{pattern}' '{definition}'`."
    )


async def declare_missing(broker: Broker, topology: Topology) -> int:
    """Declare a topology (exchanges, queues, bindings), and return how many of its queues did not exist before.

    Raises:
        CoditectError: any error of `Broker.declare`.
    """
    missing = [queue.name for queue in topology.queues if await broker.stats(queue.name) is None]
    await broker.declare(topology)
    return len(missing)
