"""The C4 diagrams of a fleet: context, containers, and the components of the path between agents.

They are drawn from the topology, as the code declares it on the broker, and from the agents of the registry, or those
that files declare. An exchange, a queue, a binding or an agent that is added is in the next drawing by itself. Who
publishes to an exchange is no part of the topology: `PUBLISHERS` says it, and a test compares it with a fleet.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coditect.broker.topology import Topology, topology_by_declarer
from coditect.model.registration import AgentRecord
from coditect.operations.connections import Connections
from coditect.operations.fleet import find_agents
from coditect.registry.port import Search
from coditect.wire import routing

RETRY = "coditect.retry.after.<delay>"
CLIENT, API, DISPATCHER, AGENT, PROGRAM = "client", "api", "dispatcher", "agent", "program"
PUBLISHERS: Mapping[str, tuple[str, ...]] = {
    routing.SUBMIT: (CLIENT, API, AGENT, DISPATCHER),
    routing.TASKS: (PROGRAM, CLIENT, API),
    routing.AGENTS: (CLIENT, API, AGENT, DISPATCHER),
    routing.REPLIES: (AGENT, API, DISPATCHER),
    routing.EVENTS: (CLIENT, API, AGENT, DISPATCHER),
    routing.BROADCAST: (CLIENT, API, AGENT, DISPATCHER),
    routing.RESULTS: (AGENT, API, DISPATCHER),
    routing.CONTROL: (CLIENT, API, AGENT, DISPATCHER),
    routing.DEAD: (AGENT, API),
    RETRY: (AGENT, API),
    routing.RETRY_BACK: (),
    routing.UNROUTED: (),
}
"""The processes that publish to each exchange; where there is none, only the broker itself routes messages to it.

The API does what agents do, for the HTTP agents.
"""
_CONSUMERS: Mapping[str, tuple[str, ...]] = {
    "an agent, for each capability": (AGENT, API),
    "an agent process": (AGENT, API),
    "a process that asks": (CLIENT, API, AGENT),
    "a listener": (CLIENT, API),
    "a dispatcher": (DISPATCHER,),
    "a dispatcher, for each of its shards": (DISPATCHER,),
    "a dispatcher, for each trigger": (DISPATCHER,),
    "an API, for each webhook": (API,),
}
"""The processes that consume the queues, by who declares them."""
_UNCONSUMED = re.compile(r"unrouted|dead\.<capability>|retry\..*|coditect\.epoch\..*")
_PATH = ("every process", "an agent, for each capability", "an agent process", "a process that asks")
"""The declarers of what a task and its reply pass between two agents."""
_SHARD = 1_000_033  # prime and unlikely, to be found again in a name


@dataclass(frozen=True, slots=True)
class Member:
    """The agents of one name: their capabilities, and how many processes live."""

    name: str
    capabilities: tuple[str, ...]
    processes: int = 0
    """The number of living processes; 0 for an agent that a file declares."""


@dataclass(frozen=True, slots=True)
class Element:
    """A box of a diagram: a person, a system, a container or a component."""

    id: str
    kind: str
    """Mermaid's keyword, such as `Person`, `ContainerDb` or `ComponentQueue`."""
    name: str
    technology: str = ""
    description: str = ""
    inside: str = ""
    """The boundary in which the element stands; empty for none."""


@dataclass(frozen=True, slots=True)
class Relation:
    """An arrow of a diagram, from the element that acts to the one that it acts on."""

    source: str
    target: str
    label: str
    technology: str = ""


@dataclass(frozen=True, slots=True)
class Diagram:
    """A C4 diagram of one level, as elements and relations, and as Mermaid text."""

    level: str
    """`context`, `containers` or `components`."""
    title: str
    elements: tuple[Element, ...]
    relations: tuple[Relation, ...]
    mermaid: str = field(default="")


async def draw_living(opened: Connections) -> tuple[Diagram, ...]:
    """Return the diagrams of the fleet as it lives now.

    Raises:
        RegistryUnavailable: when the registry does not answer; retryable.
    """
    return draw(members_of(await find_agents(opened, Search())))


def members_of(records: Iterable[AgentRecord]) -> list[Member]:
    """Return the living agents by name, with the capabilities of all processes of a name."""
    offered: dict[str, set[str]] = defaultdict(set)
    processes: dict[str, int] = defaultdict(int)
    for record in records:
        offered[record.registration.name].update(spec.name for spec in record.registration.capabilities)
        processes[record.registration.name] += 1
    return [Member(name, tuple(sorted(offered[name])), processes[name]) for name in sorted(offered)]


def draw(members: Sequence[Member]) -> tuple[Diagram, ...]:
    """Return the three diagrams of a fleet with the given agents: context, containers and components."""
    return _context(members), _containers(members), _components(members)


def _context(members: Sequence[Member]) -> Diagram:
    capabilities = {name for member in members for name in member.capabilities}
    fleet = f"{_count(len(members), 'kind')} of agents offer {_count(len(capabilities), 'capability')}"
    elements = (
        Element("person", "Person", "Person", description="Submits work, answers approvals, operates the fleet"),
        Element("program", "System_Ext", "Program", "any language", "Publishes tasks by AMQP or HTTP"),
        Element("coditect", "System", "Coditect", description=f"Agents hand work to each other. {fleet}"),
        Element("observers", "System_Ext", "Observability", "Prometheus, OTLP", "Metrics, traces and logs"),
    )
    relations = (
        Relation("person", "coditect", "Submits, approves, operates", "command line, dashboard"),
        Relation("program", "coditect", "Submits tasks, takes results and events", "AMQP, HTTP, MCP, A2A"),
        Relation("coditect", "observers", "Reports", "OpenMetrics, OTLP"),
    )
    return _diagram("context", "Coditect in its surroundings", elements, relations)


def _containers(members: Sequence[Member]) -> Diagram:
    inside = "Coditect"
    agents = [
        Element(
            f"agent_{number}",
            "Container",
            member.name,
            _processes(member),
            f"Offers {', '.join(member.capabilities) or 'nothing'}. {_traffic(AGENT)}",
            inside,
        )
        for number, member in enumerate(members)
    ]
    elements = (
        Element("person", "Person", "Person", description="Submits work, answers approvals, operates the fleet"),
        Element(PROGRAM, "System_Ext", "Program", "any language", _traffic(PROGRAM)),
        Element(CLIENT, "Container", "Client", "Python, command line", _traffic(CLIENT), inside),
        Element(API, "Container", "HTTP API and dashboard", "FastAPI", _traffic(API), inside),
        Element(DISPATCHER, "Container", "Dispatcher", "Python", _traffic(DISPATCHER), inside),
        *agents,
        Element("broker", "ContainerQueue", "RabbitMQ", "AMQP 0-9-1", "Holds every accepted task", inside),
        Element("registry", "ContainerDb", "Redis", "registry, RQ", "Who lives, and what they can do", inside),
        Element("store", "ContainerDb", "Ledger", "SQLite or FoundationDB", "State of every workflow", inside),
    )
    relations = [
        Relation("person", CLIENT, "Types commands"),
        Relation("person", API, "Opens the dashboard", "HTTP"),
        *(Relation(agent.id, "broker", "Publishes and consumes", "AMQP") for agent in agents),
        *(Relation(one, "broker", "Publishes and consumes", "AMQP") for one in (CLIENT, API, DISPATCHER)),
        Relation(PROGRAM, "broker", "Publishes tasks, takes replies", "AMQP"),
        *(Relation(agent.id, "registry", "Registers, sends heartbeats", "RESP") for agent in agents),
        *(Relation(one, "registry", "Looks agents up", "RESP") for one in (CLIENT, API)),
        Relation(DISPATCHER, "registry", "Watches agents, mirrors the graph", "RESP, RQ"),
        Relation(DISPATCHER, "store", "Commits every change"),
    ]
    return _diagram("containers", "The containers of Coditect", elements, relations)


def _traffic(process: str) -> str:
    """Return the exchanges to which a process publishes and the queues that it consumes, as a sentence."""
    exchanges = [exchange for exchange, publishers in PUBLISHERS.items() if process in publishers]
    queues = _consumed(declarer for declarer, consumers in _CONSUMERS.items() if process in consumers)
    published = f"Publishes to {', '.join(exchanges)}" if exchanges else ""
    consumed = f"consumes {', '.join(queues)}" if queues else ""
    return "; ".join(filter(None, (published, consumed)))


def _consumed(declarers: Iterable[str]) -> list[str]:
    """Return the consumed ones among the queues of some declarers, each once, in the topology's order."""
    wanted = set(declarers)
    queues = [
        _plain(queue.name)
        for declarer, part in topology_by_declarer(slots=1, shard=_SHARD).items()
        if declarer in wanted & _CONSUMERS.keys()
        for queue in part.queues
        if not _UNCONSUMED.fullmatch(queue.name)
    ]
    return list(dict.fromkeys(queues))


def _components(members: Sequence[Member]) -> Diagram:
    """Return the diagram of what a task and its reply pass between two agents on the broker."""
    declared = topology_by_declarer(slots=1, shard=_SHARD)
    part = sum((declared[name] for name in _PATH), Topology())
    names = {one for binding in part.bindings for one in (binding.exchange, binding.queue)}
    consumed = set(_consumed(_PATH))
    exchanges = {_plain(exchange.name): exchange.type.value for exchange in part.exchanges if exchange.name in names}
    queues = {_plain(one.name): one.type.value for one in part.queues}
    inside = "RabbitMQ"
    elements = (
        Element("asker", "Container", "Agent that asks", "Python", "ctx.request, or a client"),
        *(Element(_id(name), "Component", name, f"{kind} exchange", inside=inside) for name, kind in exchanges.items()),
        *(Element(_id(name), "ComponentQueue", name, f"{kind} queue", inside=inside) for name, kind in queues.items()),
        Element("worker", "Container", "Agent that works", "Python", _workers(members)),
    )
    replies = {_plain(one.name) for one in declared["a process that asks"].queues}
    asked = (routing.SUBMIT, routing.AGENTS, routing.BROADCAST)
    relations = [
        *(Relation("asker", _id(name), "publishes") for name in exchanges if name in asked),
        *_routes(part, set(exchanges)),
        *(Relation(_id(name), "worker", "delivers") for name in queues if name in consumed - replies),
        *(
            Relation("worker", _id(name), "publishes")
            for name in exchanges
            if AGENT in PUBLISHERS[name] and name not in asked
        ),
        *(Relation(_id(name), "asker", "delivers") for name in queues if name in replies),
    ]
    return _diagram("components", "The path of a task from agent to agent", elements, relations)


def _workers(members: Sequence[Member]) -> str:
    named = ", ".join(member.name for member in members)
    return f"Runs the handler of a capability: {named}" if named else "Runs the handler of a capability"


def _routes(part: Topology, exchanges: set[str]) -> Iterator[Relation]:
    """Yield how the broker routes: bindings with their keys, alternate exchanges, and where dead letters go."""
    keys: dict[tuple[str, str], list[str]] = defaultdict(list)
    for binding in part.bindings:
        keys[_plain(binding.exchange), _plain(binding.queue)].append(_plain(binding.key))
    for (exchange, queue), found in keys.items():
        yield Relation(_id(exchange), _id(queue), ", ".join(dict.fromkeys(filter(None, found))) or "every message")
    for each in part.exchanges:
        if each.alternate and _plain(each.name) in exchanges:
            yield Relation(_id(_plain(each.name)), _id(each.alternate), "what has no queue")
    ends = {(_plain(queue.name), queue.dead_letter_exchange) for queue in part.queues if queue.dead_letter_exchange}
    for queue, target in sorted(ends):
        yield Relation(_id(queue), _id(target), "dead letters, and messages whose time is over")


def _plain(name: str) -> str:
    """Return a name with placeholders for delays, priority levels and shards, so that similar names are one."""
    name = re.sub(r"(retry\.after\.)\d+$", r"\1<delay>", name.replace(str(_SHARD), "<shard>"))
    return re.sub(r"(<capability>\.)p[012]$", r"\1<level>", name)


def _id(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_") + ("_exchange" if name.startswith("coditect.") else "_queue")


def _processes(member: Member) -> str:
    return "agent" if not member.processes else _count(member.processes, "process", "processes")


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or re.sub('y$', 'ie', noun) + 's'}"


def _diagram(level: str, title: str, elements: Iterable[Element], relations: Iterable[Relation]) -> Diagram:
    boxes, arrows = tuple(elements), tuple(relations)
    return Diagram(level, title, boxes, arrows, _mermaid(level, title, boxes, arrows))


def _mermaid(level: str, title: str, elements: Sequence[Element], relations: Sequence[Relation]) -> str:
    kind = {"context": "C4Context", "containers": "C4Container", "components": "C4Component"}[level]
    lines = [kind, f"  title {title}", *(f"  {_box(element)}" for element in elements if not element.inside)]
    for boundary in dict.fromkeys(element.inside for element in elements if element.inside):
        opener = "System_Boundary" if level == "containers" else "Container_Boundary"
        lines.append(f"  {opener}({_words(boundary.lower())}_boundary, {_quoted(boundary)}) {{")
        lines += [f"    {_box(element)}" for element in elements if element.inside == boundary]
        lines.append("  }")
    for one in relations:
        texts = ", ".join(_quoted(text) for text in (one.label, one.technology) if text)
        lines.append(f"  Rel({one.source}, {one.target}, {texts})")
    return "\n".join(lines) + "\n"


def _box(element: Element) -> str:
    """Return an element as Mermaid writes it: persons and systems have no technology of their own."""
    whole = element.kind.startswith(("Person", "System"))
    about = f"{element.description} ({element.technology})" if whole and element.technology else element.description
    texts = (element.name, about) if whole else (element.name, element.technology, about)
    return f"{element.kind}({element.id}, {', '.join(map(_quoted, texts))})"


def _words(text: str) -> str:
    return re.sub(r"\W+", "_", text)


def _quoted(text: str) -> str:
    """Return a text in the quotes of Mermaid, which knows no escapes, and would take `<agent>` for markup."""
    plain = text.replace('"', "'").replace("<", "{").replace(">", "}")
    return f'"{plain}"'
