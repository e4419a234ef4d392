"""The program of an agent process; the only module of its package that chooses adapters for the ports."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from secrets import token_hex
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from coditect.agent.declaration import Agent, load_agent
from coditect.agent.health import Readiness, seen_from_outside
from coditect.agent.heartbeat import Heartbeat, Usage, load_sampler
from coditect.agent.intake import most_in_hand
from coditect.agent.mailbox import Mailbox
from coditect.agent.process import BEGAN, PARENT, keep_processes
from coditect.agent.quarantine import Quarantine
from coditect.agent.runtime import Runtime
from coditect.agent.services import Host
from coditect.agent.signature import lived
from coditect.agent.workspaces import Workspaces
from coditect.aio.clock import Clock, SystemClock
from coditect.aio.launch import die_with, tell_ready
from coditect.aio.loop import collect_rarely, keep_signals_from_children, on_stop_signal, run_loop, run_unstoppable_loop
from coditect.aio.supervisor import Health, Supervisor, run_until
from coditect.blobs import open_blobs
from coditect.broker.port import Broker
from coditect.broker.rabbitmq import PUBLISH_WINDOW, AmqpBroker
from coditect.broker.topology import Topology, agent_queues, base_topology, capability_queues, inbox_binding
from coditect.errors import CoditectError, SetupError
from coditect.messaging.event_publisher import Events
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.registry.port import Registry, following
from coditect.registry.redis import RedisRegistry
from coditect.settings.addresses import without_passwords
from coditect.settings.settings import Settings
from coditect.telemetry.logs import CURRENT_AGENT, configure_logs, enable_own_logs
from coditect.telemetry.metrics import MemoryMetrics
from coditect.telemetry.process import observe_process, open_tracing
from coditect.wire import routing

if TYPE_CHECKING:
    from coditect.agent.approvals import AgentApprovals

log = logging.getLogger(__name__)

AGENT_CONNECT_SECONDS = 60.0
CAPABILITIES_AT_ONCE = 50
STOPPED = "a signal came before the agent was ready"
CANCELED_FIX = "see which handler cancels asyncio.all_tasks(): a handler cancels only what it started"
PROCESS_EXIT_SECONDS = 2.0
"""How long a drained process may take to end."""


def new_agent_id(agent: Agent) -> AgentId:
    """Return a fresh id for a process of an agent: the agent's name and eight random hex digits."""
    return AgentId(f"{agent.name}-{token_hex(4)}")


def topology(agent: Agent) -> Iterator[Topology]:
    """Yield the exchanges and queues that all processes of an agent share, in parts small enough to declare in time.

    A declaration has a time limit, and many capabilities need more time than that.
    """
    needed = base_topology()
    for number, capability in enumerate(agent.capabilities, 1):
        needed += capability_queues(capability.name, max_queued=capability.spec.max_queued)
        if number % CAPABILITIES_AT_ONCE == 0:
            yield needed
            needed = Topology()
    yield needed


def registration(
    agent: Agent, agent_id: AgentId, clock: Clock, *, slots: int, metadata: Mapping[str, Any] = MappingProxyType({})
) -> Registration:
    """Return what an agent process registers of itself in the registry, such as id, name, slots and capabilities."""
    return Registration(
        agent_id=agent_id,
        name=agent.name,
        version=agent.version,
        slots=slots,
        capabilities=tuple(capability.spec for capability in agent.capabilities),
        tags=agent.tags,
        host=socket.gethostname(),
        pid=os.getpid(),
        started_at_ms=clock.now_ms(),
        metadata={**metadata} | ({"description": agent.description} if agent.description else {}),
    )


@asynccontextmanager
async def running_agent(
    agent: Agent,
    *,
    broker: Broker,
    registry: Registry,
    settings: Settings,
    clock: Clock,
    drain: asyncio.Event,
    agent_id: AgentId | None = None,
    host: Host | None = None,
) -> AsyncIterator[Runtime]:
    """Run an agent on the given broker and registry inside the block; leaving the block drains the agent.

    The drain ends tasks first, then the registration, then the queues. The agent gets a fresh id unless one is given.
    """
    agent_id, host, slots = agent_id or new_agent_id(agent), host or Host(), settings.slots or agent.slots
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(Supervisor(host.health))
        value = await stack.enter_async_context(lived(agent.lifespan, agent))
        reference = await following(clock, registry, background)
        for step in topology(agent):
            await broker.declare(step)
        stack.push_async_callback(_remove_queues, broker, agent_id)
        requests = await stack.enter_async_context(_requests(broker, settings, agent_id, host))
        events = Events(broker, reference, source=f"/agents/{agent_id}", metrics=host.metrics)
        runtime = Runtime(
            agent,
            agent_id,
            broker=broker,
            requests=requests,
            events=events,
            clock=reference,
            background=background,
            settings=settings,
            host=host,
            approvals=_approvals(settings, agent),
            quarantine=Quarantine(registry, agent_id, background, patience_seconds=_patience_seconds(settings)),
        )
        runtime.services.lifespan = value
        load = _completed(runtime.load, host.sample or load_sampler(), broker)
        described = registration(agent, agent_id, reference, slots=slots, metadata=host.metadata)
        beat = {"beat_seconds": settings.beat_seconds, "lease_seconds": settings.lease_seconds}
        heartbeat = await stack.enter_async_context(Heartbeat(registry, described, load, health=host.health, **beat))
        await broker.declare(agent_queues(agent_id, slots=slots))  # unregistered, they would count as a dead agent's
        observe_process(host.metrics, broker, lambda: reference.ahead_ms / 1000, host.health.deaths.total)
        runtime.observed(host.metrics, heartbeat)
        mailbox = Mailbox(agent, runtime, broker, events, background, drain=drain, metrics=host.metrics)
        await mailbox.open(agent_id)
        stack.push_async_callback(mailbox.close)
        await runtime.guards.breakers.learn()  # after the mailbox is open, so that no news is missed
        await stack.enter_async_context(runtime)
        events.emit("agent.online", subject=agent_id)
        yield runtime
        heartbeat.set_status(AgentStatus.DRAINING)
        events.emit("agent.draining", subject=agent_id)


def _requests(broker: Broker, settings: Settings, agent_id: AgentId, host: Host) -> Requests:
    blobs = open_blobs(settings.blob_url, most_bytes=settings.blob_max_bytes)
    replies = routing.agent_replies(agent_id)
    return Requests(broker, name=agent_id, reply_to=replies, blobs=blobs, metrics=host.metrics, tracing=host.tracing)


def _approvals(settings: Settings, agent: Agent) -> AgentApprovals | None:
    """Return the approval policy that the settings name; None, without an import of its modules, if they name none.

    Raises:
        NotFound: when there is no such file.
        InputError: when the file is no approval policy.
    """
    if settings.approval_policy is None:
        return None
    from coditect.agent.approvals import AgentApprovals  # noqa: PLC0415 - only an agent with a policy pays
    from coditect.workflow.approvals.file import load_policy  # noqa: PLC0415

    return AgentApprovals(agent, load_policy(settings.approval_policy))


def _patience_seconds(settings: Settings) -> float:
    """Return the seconds without a renewed lease after which another agent is gone: 3 heartbeats, at most a lease."""
    return min(settings.lease_seconds, 3 * settings.beat_seconds)


def _completed(load: Callable[[], Load], sample: Callable[[], Usage], broker: Broker) -> Callable[[], Load]:
    """Return a function that reports the agent's load, CPU and memory use; as offline while its broker does not answer.

    An agent whose broker does not answer is offline and stops renewing its lease, so that the control plane may give
    its tasks to other agents.
    """

    def complete() -> Load:
        usage, carried = sample(), load()
        status = carried.status if broker.answering else AgentStatus.OFFLINE
        return replace(carried, status=status, cpu_percent=usage.cpu_percent, resident_bytes=usage.resident_bytes)

    return complete


async def _remove_queues(broker: Broker, agent_id: AgentId) -> None:
    """Unbind an agent's inbox, and delete its mailbox, its reply queue and, if empty, the queue `agent.<id>.next`.

    The inbox gets no new tasks and hands its own on. A dispatcher deletes the inbox when the last task has gone, which
    the agent cannot tell. The mailbox goes after the inbox is unbound: a dispatcher concludes the one from the other.
    The queue `agent.<id>.next` has follow-up tasks.
    """
    try:
        await broker.unbind(inbox_binding(agent_id))
        await broker.delete_queue(routing.mailbox_queue(agent_id))
        await broker.delete_queue(routing.agent_replies(agent_id))
        await broker.delete_queue(routing.next_queue(agent_id), if_empty=True, classic=True)
    except CoditectError as error:
        log.warning("The agent's queues could not be removed", extra={"agent_id": agent_id, "reason": str(error)})


async def serve(
    agent: Agent, settings: Settings, *, source: str | None = None, renew: asyncio.Event | None = None
) -> bool:
    """Run an agent until SIGTERM, SIGINT or a drain message, or until `renew` is set; then drain it.

    Returns:
        Whether the process is to end, by a signal or a drain message, which may also have come during the drain.

    Raises:
        CancelledError: when the signal comes before the agent is ready.
        LoopDied: after the drain, when a critical loop has died again and again.
    """
    with _canceled_by_signals() as stop:
        return await _serve(agent, settings, stop, source=source, renew=renew)


@contextmanager
def _canceled_by_signals() -> Iterator[asyncio.Event]:
    """Let a signal cancel the block, until `on_stop_signal` is called again, and set the event that is yielded.

    After a signal, the CancelledError that leaves the block has the message `STOPPED`. That of the block itself may
    have another message, as a task group's does, and a library may swallow it.
    """
    stop, opening, signals = asyncio.Event(), asyncio.current_task(), list[bool]()
    assert opening is not None

    def end() -> None:
        stop.set()
        signals.append(opening.cancel())

    on_stop_signal(end)
    try:
        yield stop
    except asyncio.CancelledError as error:
        if not signals:
            raise
        raise asyncio.CancelledError(STOPPED) from error


async def _serve(
    agent: Agent, settings: Settings, stop: asyncio.Event, *, source: str | None, renew: asyncio.Event | None
) -> bool:
    agent_id = new_agent_id(agent)
    CURRENT_AGENT.set(agent_id)
    await asyncio.to_thread(_sweep_workspaces, settings)
    broker = AmqpBroker(
        settings.amqp_url,
        name=agent_id,
        window=publish_window(agent, settings),
        declare=settings.declare,
        quorum=settings.reply_queue == "quorum",
        connect_seconds=AGENT_CONNECT_SECONDS,
    )
    health, metrics = broker.health, MemoryMetrics()
    tracing = open_tracing(settings, service="coditect-agent", instance=agent_id)
    readiness = Readiness()
    async with (
        seen_from_outside(settings, readiness, metrics, restarts=health.deaths.total),
        tracing,
        broker,
        RedisRegistry(settings.redis_url) as registry,
        running_agent(
            agent,
            broker=broker,
            registry=registry,
            settings=settings,
            clock=SystemClock(),
            drain=stop,
            agent_id=agent_id,
            host=Host(source=source, health=health, metrics=metrics, tracing=tracing),
        ) as runtime,
    ):
        readiness.check = lambda: "it drains" if stop.is_set() else unready(broker, health)
        on_stop_signal(stop.set)
        collect_rarely()
        tell_ready(BEGAN)
        enable_own_logs()  # the agent's lifespan may have configured logs of its own
        _log_ready(agent, runtime.agent_id, settings)
        await run_until(stop, health.failure(), renew=renew)
    return stop.is_set()


def _sweep_workspaces(settings: Settings) -> None:
    """Remove the workspaces of agents that were killed; if that cannot be done, log it."""
    try:
        Workspaces(settings.workspace).sweep()
    except SetupError as error:
        log.warning("No task can have a workspace", extra={"reason": str(error)})


def _log_ready(agent: Agent, agent_id: AgentId, settings: Settings) -> None:
    facts = {
        "agent_id": agent_id,
        "capabilities": ",".join(capability.name for capability in agent.capabilities),
        "slots": settings.slots or agent.slots,
        "broker": without_passwords(settings.amqp_url),
    }
    log.info("The agent is ready", extra=facts)
    if not agent.capabilities:
        log.warning("The agent has no capability: nothing is sent to it", extra={"agent_id": agent_id})


def publish_window(agent: Agent, settings: Settings) -> int:
    """Return how many publishes may wait for their confirm: at least as many as the agent may hold deliveries.

    A wait for the confirm of another reply would cost more than the reply itself.
    """
    return max(PUBLISH_WINDOW, most_in_hand(settings.slots or agent.slots))


def unready(broker: Broker, health: Health) -> str:
    """Return why the agent cannot take work; empty when the broker is connected and every critical loop runs."""
    return health.why_not() if broker.connected else "the broker's connection or a consumer is missing"


def run(target: str, settings: Settings, *, processes: int = 1) -> int:
    """Run the agent that a file or module declares, in that many `processes`, and return the exit code."""
    if processes > 1:
        configure_logs(settings)
        return run_loop(_keep_agents(target, settings, processes))
    if PARENT in os.environ:
        die_with(int(os.environ.pop(PARENT)))
    return run_agent(load_agent(target), settings, source=target)


def run_agent(agent: Agent, settings: Settings, *, source: str | None = None) -> int:
    """Run an agent in this process until it has drained, and return 0; `source`: the file or module that declares it.

    Errors of the start or of a critical loop pass through.
    """
    return run_serving(serve(agent, settings, source=source), settings)


def run_serving(serving: Coroutine[Any, Any, object], settings: Settings) -> int:
    """Run a coroutine that serves agents until they have drained, end this process's other threads, and return 0.

    Errors of the start or of a critical loop pass through.
    """
    configure_logs(settings)
    keep_signals_from_children()
    run_unstoppable_loop(_serve_and_end(serving))
    return 0


async def _keep_agents(target: str, settings: Settings, processes: int) -> int:
    command = [sys.executable, "-m", "coditect", "agent", "run", target]
    return await keep_processes(command, processes, stall_seconds=settings.stall_seconds)


def _code_of_stop(error: asyncio.CancelledError) -> int:
    """Return the exit code of an agent that was canceled: 0 for a signal before it was ready, else 1."""
    if error.args == (STOPPED,):
        log.info("Stopped before the agent was ready")
        return 0
    facts = {"fix": CANCELED_FIX}
    log.error("Something in this process canceled the whole agent; it ends", exc_info=error, extra=facts)
    return 1


async def _serve_and_end(serving: Coroutine[Any, Any, object]) -> None:
    """Serve agents, and after that end the process within 2 s, even if a handler's thread never ends.

    Python itself waits for every thread before a process ends.
    """
    code = 1
    try:
        await serving
        code = 0
    except asyncio.CancelledError as error:
        code = _code_of_stop(error)
    finally:
        timer = threading.Timer(PROCESS_EXIT_SECONDS, os._exit, (code,))
        timer.daemon = True
        timer.start()
