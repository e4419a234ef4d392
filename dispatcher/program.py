"""The main program of the control plane, which chooses the adapters and puts a dispatcher together."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from coditect.agent.health import Readiness, seen_from_outside
from coditect.aio.clock import Clock, SystemClock
from coditect.aio.launch import tell_ready
from coditect.aio.loop import collect_rarely, on_stop_signal, run_loop
from coditect.aio.supervisor import Health, Supervisor, run_until
from coditect.broker.port import Broker
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology, control_plane
from coditect.errors import CoditectError, RegistryUnavailable, SetupError
from coditect.messaging.event_publisher import Events
from coditect.registry.port import Registry, Search, following
from coditect.registry.redis import RedisRegistry
from coditect.settings.addresses import vhost_of
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.logs import configure_logs
from coditect.telemetry.metrics import JOBS_MENDED, STORE_BYTES, MemoryMetrics
from coditect.telemetry.process import observe_process, open_tracing
from coditect.telemetry.tracing import NO_TRACING, Tracing
from coditect.wire import routing
from coditect.wire.routing import ReturnAddresses
from coditect.workflow.approvals.policy import ApprovalPolicy, CapabilityFacts
from coditect.workflow.approvals.signing import MIN_APPROVAL_KEY_CHARACTERS
from dispatcher.capacity import Capacity
from dispatcher.coordination import trigger_rows
from dispatcher.ledger.ownership.shards import DEFAULT_SHARDS, LOCKS_SHARD_KEY, shard_of
from dispatcher.liveness.eviction import Evictor, evictor
from dispatcher.liveness.ping import Pings
from dispatcher.ports import Ports
from dispatcher.recovery import rebuild
from dispatcher.recovery.failover import Predecessors, watching_agents
from dispatcher.requests.interest import hearing_listeners
from dispatcher.requests.lessons import LessonRecorder
from dispatcher.requests.server import RequestServer
from dispatcher.requests.triggers import TriggerQueues
from dispatcher.retention import Retention
from dispatcher.scheduling.reconciler import ROUND_SECONDS, Reconciler
from dispatcher.scheduling.scheduler import Scheduler
from dispatcher.shards.ownership import ShardOwnership, new_owner
from dispatcher.store.fdb import FdbDatabase, FdbSettings
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.port import Database
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.taskgraph.port import TaskGraph
from dispatcher.taskgraph.redis import RedisTaskGraph
from dispatcher.undeliverable import Notices

log = logging.getLogger(__name__)

DISPATCHER_CONNECT_SECONDS = 60.0
TURN_SECONDS = 0.0005
"""On FoundationDB, the time after which a thread that runs gives way to one that wants to; a tenth of Python's own.

The client's network thread needs a turn for each answer for which another waits, and brings no other until it has it.
"""
REQUESTS = 200
Wrap = Callable[[Broker, Database, TaskGraph], tuple[Broker, Database, TaskGraph]]
"""The type of a function that wraps the ports of a dispatcher."""


@dataclass(frozen=True, slots=True)
class DispatcherOptions:
    """The options of one dispatcher, such as the number of shards and how long ended workflows are kept."""

    shards: int = DEFAULT_SHARDS
    """The number of shards of a new store; an existing store keeps its own."""
    owner: str = field(default_factory=new_owner)
    """The name of this dispatcher process as a holder of leases; no other process may have it."""
    reconcile_seconds: float = ROUND_SECONDS
    """The pause between two comparisons of RQ's jobs with the ledger."""
    keep_days: float = 7.0
    """The days for which a workflow is kept after its end."""
    keep_audit_days: float = 365.0
    """The days for which an entry of the audit trail is kept."""
    approvals: ApprovalPolicy | None = None
    """The approval policy; without one, every approval asks a person and no task does."""
    quorum: bool = False
    """Whether all queues are quorum queues, as in a cluster; then follow-up tasks go to the capabilities' queues."""
    addresses: ReturnAddresses = field(default_factory=ReturnAddresses)
    """The reply addresses to which the dispatcher may send answers."""
    capacity: Capacity | None = field(default=None, repr=False, compare=False)
    """The count and limit of published tasks; None for one of the dispatcher's own."""
    metrics: MemoryMetrics | None = field(default=None, repr=False, compare=False)
    """The metrics of the process; None for metrics of the dispatcher's own."""
    health: Health | None = field(default=None, repr=False, compare=False)
    """The health of the process; None for a health of the dispatcher's own."""
    tracing: Tracing = NO_TRACING
    """The tracing of the process; opened and closed by its program."""


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """A running dispatcher as tests and programs see it: answers to undeliverable tasks, shards, health and metrics."""

    notices: Notices
    ownership: ShardOwnership
    health: Health
    """The health of the dispatcher's background loops."""
    metrics: MemoryMetrics


@asynccontextmanager
async def running_dispatcher(
    *,
    broker: Broker,
    registry: Registry,
    clock: Clock,
    database: Database | None = None,
    graph: TaskGraph | None = None,
    options: DispatcherOptions | None = None,
    owner: str | None = None,
    evict: Evictor | None = None,
) -> AsyncIterator[Dispatcher]:
    """Run a dispatcher on the given ports while the block runs; at its end finish the batches under way, no others.

    Without a database the ledger is kept in memory: for tests, where it ends with the process. Without a graph there is
    no RQ, and all nodes are dispatched from the ledger alone. `owner`, or else the options' name, names this life of
    the dispatcher, and should be the name of its broker connection: by that name its successors evict it.
    """
    options = options or (DispatcherOptions() if database is not None else DispatcherOptions(shards=1))
    options = replace(options, owner=owner or options.owner)
    async with AsyncExitStack() as stack:
        store = database if database is not None else await stack.enter_async_context(MemoryDatabase())
        background = await stack.enter_async_context(Supervisor(options.health))
        reference, begun = await asyncio.gather(
            following(clock, registry, background), rebuild.begin_incarnation(store, graph, clock, background)
        )
        metrics = options.metrics or MemoryMetrics()
        observe_process(metrics, broker, lambda: reference.ahead_ms / 1000, background.health.deaths.total)
        events = Events(broker, reference, source="/dispatcher", metrics=metrics)
        await broker.declare(base_topology() + control_plane())
        await stack.enter_async_context(hearing_listeners(broker, events, owner=options.owner))
        capacity = options.capacity or Capacity(asyncio.get_running_loop().time)
        approvals = await informed(options.approvals, registry, background)
        shared = (begun.floor, options.quorum, metrics, options.tracing, approvals)
        ports = Ports(broker, store, events, reference, background, capacity, *shared)
        pings = await stack.enter_async_context(Pings(broker, name=f"pings-{options.owner}"))
        ownership, control = compose(ports, options, graph, pings, Predecessors(ports, evict).evict)
        await stack.enter_async_context(ownership)
        consumer = await broker.consume(routing.CONTROL_QUEUE, control.arrived, prefetch=REQUESTS, group="control")
        stack.push_async_callback(consumer.cancel)
        kept = (options.keep_days, options.keep_audit_days)
        retention = Retention(ports, owner=options.owner, graph=graph, keep_days=kept[0], keep_audit_days=kept[1])
        background.keep(retention.run, name="retention", critical=False, idle=True)
        await stack.enter_async_context(
            watching_agents(
                ports,
                registry,
                ownership.workers,
                owner=options.owner,
                evict=evict,
                locks_shard=shard_of(LOCKS_SHARD_KEY, ownership.count),
            )
        )
        notices = await stack.enter_async_context(Notices(ports, registry, addresses=options.addresses))
        stack.push_async_callback(ownership.hand_over)  # first of all: others wait for the shards
        yield Dispatcher(notices, ownership, background.health, metrics)


def compose(
    ports: Ports,
    options: DispatcherOptions,
    graph: TaskGraph | None,
    pings: Pings,
    evict: Callable[[str], Awaitable[object]],
) -> tuple[ShardOwnership, RequestServer]:
    """Create a dispatcher's shard ownership and request server and return them; start its scheduler and reconciler."""
    ownership = ShardOwnership(ports, owner=options.owner, pings=pings, graph=graph, evict=evict, wanted=options.shards)
    rebuilt = partial(rebuild.rebuild, ports, ownership.markers, graph=graph)
    control = RequestServer(ports, ownership, addresses=options.addresses, rebuild=rebuilt)
    scheduler = Scheduler(ports, ownership, graph)
    ownership.on_request, ownership.on_room = control.arrived, scheduler.nudge
    triggers = TriggerQueues(ports, ownership)
    lessons = LessonRecorder(ports, ownership)
    ownership.on_open += [triggers.opened, lessons.turned]
    ownership.on_close += [triggers.closed, lessons.turned]
    control.on_change = dict.fromkeys(trigger_rows.CHANGES, lambda body: triggers.changed(body["trigger"]))
    scheduler.open()
    if graph is not None:
        reconciler = Reconciler(ports.database, ownership.workers, graph, options.reconcile_seconds)
        ports.metrics.observe(JOBS_MENDED, lambda: reconciler.mended)
        reconciler.open(ports.background)
    return ownership, control


def options_of(settings: Settings) -> DispatcherOptions:
    """Return the options of a dispatcher that the settings name, with a fresh name for this process.

    Raises:
        SetupError: when the settings ask for tracing, and OpenTelemetry is not installed.
    """
    owner = new_owner()
    return DispatcherOptions(
        shards=settings.shards,
        owner=owner,
        keep_days=settings.keep_days,
        keep_audit_days=settings.keep_audit_days,
        approvals=read_approvals(settings.approval_policy, settings.approval_key),
        quorum=settings.reply_queue == "quorum",
        addresses=ReturnAddresses(settings.answer_queues),
        tracing=open_tracing(settings, service="coditect-dispatcher", instance=owner),
    )


async def serve(settings: Settings, *, wrap: Wrap | None = None) -> None:
    """Run one dispatcher until SIGTERM or SIGINT, or until its store or a critical loop fails.

    The dispatcher works on the ports that `wrap` returns for its own, such as ports that write down what is called.

    Raises:
        CancelledError: when the signal comes before the dispatcher is ready.
    """
    stop = asyncio.Event()
    if (opening := asyncio.current_task()) is not None:
        on_stop_signal(opening.cancel)
    metrics = MemoryMetrics()
    options = options_of(settings)
    broker = AmqpBroker(
        settings.amqp_url,
        name=options.owner,
        declare=settings.declare,
        quorum=settings.reply_queue == "quorum",
        connect_seconds=DISPATCHER_CONNECT_SECONDS,
    )
    readiness, health = Readiness(), broker.health
    options = replace(options, metrics=metrics, health=health)
    async with AsyncExitStack() as stack:
        seen = seen_from_outside(settings, readiness, metrics, restarts=health.deaths.total)
        await stack.enter_async_context(seen)
        await stack.enter_async_context(options.tracing)
        database = await _owned_store(stack, settings, readiness)
        _observe_store(settings, metrics)
        await stack.enter_async_context(broker)
        registry = await stack.enter_async_context(RedisRegistry(settings.redis_url))
        graph = await stack.enter_async_context(RedisTaskGraph(settings.redis_url, worker=options.owner))
        ports: tuple[Broker, Database, TaskGraph] = (broker, database, graph)
        wrapped_broker, wrapped_store, wrapped_graph = ports if wrap is None else wrap(*ports)
        running = await stack.enter_async_context(
            running_dispatcher(
                broker=wrapped_broker,
                registry=registry,
                clock=SystemClock(),
                database=wrapped_store,
                graph=wrapped_graph,
                evict=evictor(settings.management_url, vhost_of(settings.amqp_url)),
                options=options,
            )
        )
        readiness.check = lambda: "it ends" if stop.is_set() else unready(broker, running)
        on_stop_signal(stop.set)
        collect_rarely()
        tell_ready()
        log.info("The dispatcher is ready")
        await run_until(stop, database.failure(), health.failure())


async def _owned_store(stack: AsyncExitStack, settings: Settings, readiness: Readiness) -> Database:
    """Open the store, waiting while another process owns it."""

    def stand_by() -> None:
        log.info("The dispatcher stands by: another process owns the store", extra={"store": settings.store_url})
        readiness.check = lambda: "the dispatcher stands by: another process owns the store"
        tell_ready()

    return await stack.enter_async_context(open_store(settings, on_wait=stand_by))


def _observe_store(settings: Settings, metrics: MemoryMetrics) -> None:
    """Register the size of a store that is a file; FoundationDB has metrics of its own."""
    kind, _, place = settings.store_url.partition(":")
    if kind == "sqlite":
        files = [Path(place + ending) for ending in ("", "-wal")]
        metrics.observe(STORE_BYTES, lambda: sum(file.stat().st_size for file in files if file.exists()))


def open_store(settings: Settings, *, on_wait: Callable[[], None] = lambda: None) -> Database:
    """Return the unopened store that the settings name: `sqlite:PATH`, `fdb:CLUSTER_FILE` or `memory:`.

    Opening a store that another process owns waits for as long as that process has it, and calls `on_wait` once. With
    `fdb:`, the process's threads give way to each other within half a millisecond from then on.

    Raises:
        SetupError: when there is no such store.
    """
    kind, _, place = settings.store_url.partition(":")
    match kind:
        case "sqlite" if place:
            return SqliteDatabase(Path(place), wait_seconds=math.inf, on_wait=on_wait)
        case "fdb":
            sys.setswitchinterval(TURN_SECONDS)
            return FdbDatabase(FdbSettings(cluster_file=place or None))
        case "memory":
            return MemoryDatabase()
        case _:
            fix = "CODITECT_STORE_URL=sqlite:PATH or fdb:CLUSTER_FILE"
            raise SetupError("There is no such store", given=settings.store_url, fix=fix)


def unready(broker: Broker, dispatcher: Dispatcher) -> str:
    """Return why the dispatcher cannot work; empty while broker, store and every critical loop work."""
    if dispatcher.ownership.cut_off_from:
        return f"the dispatcher is cut off from the {dispatcher.ownership.cut_off_from} and gave its shards up"
    if not broker.connected:
        return "the broker's connection or a consumer is missing"
    return dispatcher.health.why_not()


def main(settings: Settings | None = None, *, wrap: Wrap | None = None) -> int:
    """Run a dispatcher until it is stopped, and return the process's exit code.

    The settings are those given, or else those of the environment. `wrap` wraps the ports, as in `serve`.
    """
    configure_logs()
    try:
        settings = settings or read_settings()
        configure_logs(settings)
        run_loop(serve(settings, wrap=wrap))
    except asyncio.CancelledError:
        log.info("Stopped before the dispatcher was ready")
    except CoditectError as error:
        log.error("The dispatcher cannot run", extra={"reason": str(error)})
        return error.exit_code
    return 0


REGISTERED_FACTS_SECONDS = 5.0
"""The pause between two looks at what agents have registered."""
MAX_KNOWN_CAPABILITIES = 10_000


def read_approvals(path: str | None, key: str | None) -> ApprovalPolicy | None:
    """Read the approval policy that the settings name, with the key that signs answers; None when they name neither.

    Raises:
        SetupError: when the key is too short.
        NotFound: when there is no such file.
        InputError: when the file is no approval policy.
    """
    if key is not None and len(key) < MIN_APPROVAL_KEY_CHARACTERS:
        fix = "set CODITECT_APPROVAL_KEY, such as: openssl rand -hex 32"
        raise SetupError("Answers to approvals are signed by a key of 32 characters or more", has=len(key), fix=fix)
    if path is None:
        return None if key is None else ApprovalPolicy((), answer_key=key)
    from coditect.workflow.approvals.file import load_policy  # noqa: PLC0415 - only a dispatcher with a policy pays

    policy = load_policy(path)
    log.info("Approvals follow a policy", extra={"path": path, "rules": len(policy.rules), "policy": policy.digest})
    return replace(policy, answer_key=key)


async def informed(policy: ApprovalPolicy | None, registry: Registry, background: Supervisor) -> ApprovalPolicy | None:
    """Return the policy; if a rule looks at tags or costs, add a lookup of those that agents register.

    The lookup's data is refreshed in the background.
    """
    if policy is None or not any(rule.tags or rule.cost_above is not None for rule in policy.rules):
        return policy
    registered = RegisteredFacts(registry)
    await registered.look()
    background.keep(registered.run, name="registered capabilities", critical=False, idle=True)
    return replace(policy, facts=registered.facts.get)


class RegisteredFacts:
    """The tags and costs that agents register for capabilities, kept also while no agent offers a capability."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.facts: dict[str, CapabilityFacts] = {}

    async def run(self) -> None:
        """Read the tags and costs from the registry every 5 seconds, until canceled."""
        while True:
            await asyncio.sleep(REGISTERED_FACTS_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Read the registry once; keep the known tags and costs when the registry does not answer."""
        try:
            records = await self._registry.find(Search())
        except RegistryUnavailable as error:
            log.info("What capabilities cost is not seen; what was known counts", extra={"reason": str(error)})
            return
        found: dict[str, CapabilityFacts] = {}
        for record in records:
            for offer in record.registration.capabilities:
                tags, before = record.registration.tags | offer.tags, found.get(offer.name)
                cost = offer.cost if before is None else max(before.cost, offer.cost)
                found[offer.name] = CapabilityFacts(tags if before is None else before.tags | tags, cost)
        for name, facts in self.facts.items():
            if len(found) < MAX_KNOWN_CAPABILITIES:
                found.setdefault(name, facts)
        self.facts.clear()
        self.facts.update(found)
