"""The alarm of timers rings although the store did not answer; for limits, while agents are heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import pytest

from chaos.simulated_store import SimulatedDatabase
from coditect import Agent, Retry, Workflow
from coditect.aio.clock import Clock, SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Consumer
from coditect.broker.topology import base_topology, shard_queues
from coditect.errors import CoditectError
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.wire import routing
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Due, Finished
from dispatcher.ledger.nodes import limits
from dispatcher.ledger.nodes.approvals.questions import TIMER as APPROVAL_TIMER
from dispatcher.ledger.nodes.claim import RETRY_TIMER
from dispatcher.ledger.timers import Timer
from dispatcher.ports import Ports
from dispatcher.shards import timers as timer_service
from dispatcher.shards.completions import Settle
from dispatcher.shards.timers import LATE_REPORTS_SECONDS, TimerService
from dispatcher.store.errors import TransactionTimedOut
from dispatcher.store.transaction import Reads
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.lone_ledger import completed, failed
from tests.unit.dispatcher.lone_worker import CAPABILITY, LoneWorker
from tests.unit.dispatcher.planes import MortalFleet

Value = TypeVar("Value")


class LoopClock(SystemClock):
    """Begins a million seconds after the epoch."""

    def now_ms(self) -> int:
        return 1_000_000_000 + round(1000 * asyncio.get_running_loop().time())


class Silent(SimulatedDatabase):
    """Does not answer so many reads."""

    silent = 0
    reads = 0
    held: asyncio.Event | None = None
    """What an answer that was read waits for."""

    async def read(self, body: Callable[[Reads], Value]) -> Value:
        self.reads += 1
        if self.silent:
            self.silent -= 1
            raise TransactionTimedOut("The fault that was asked for")
        found = await super().read(body)
        if self.held is not None:
            await self.held.wait()
        return found


@dataclass
class Around:
    """The part of the ports that an alarm touches, and a shard worker that does what is due."""

    broker: MemoryBroker
    database: Silent
    background: Supervisor
    server: MemoryServer
    clock: Clock = field(default_factory=LoopClock)
    fired: dict[str, float] = field(default_factory=dict)
    """When each kind of timer fired, in seconds."""
    refused: str = ""
    """The kind of timer that the worker cannot carry out."""
    refusals: int = 0
    consumers: list[Consumer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.timer_service = TimerService(0, cast(Ports, self), self.put)

    def put(self, command: Due, settle: Settle) -> None:
        self.fired[command.timer.kind] = asyncio.get_running_loop().time()
        self.background.start(self._do(command.timer, settle), name="do")

    async def _do(self, timer: Timer, settle: Settle) -> None:
        if timer.kind == self.refused:
            self.refusals += 1
            settle(CoditectError("The control plane failed on this"))
            return
        settle(await self.database.run(lambda tr: timers.finish(tr, timer)))

    async def listen(self) -> None:
        """The shard's queues are consumed, and its alarm knows by whom."""
        await self.consume()
        self.timer_service.listen(self.consumers)

    async def consume(self) -> None:
        """The shard's queues are, for the alarm."""
        for queue in (routing.results_queue(0), routing.control_queue(0)):
            on_lost = self.timer_service.deafened
            self.consumers.append(await self.broker.consume(queue, lambda one: one.ack(), prefetch=1, on_lost=on_lost))

    async def say_something(self) -> None:
        """A broker tells those who publish that it takes nothing."""
        await self.broker.publish(Message(b"{}"), exchange=routing.CONTROL, routing_key="0", timeout_seconds=60)

    async def plan(self, *kinds: str, seconds: float = 0.0) -> int:
        """Sets a timer of each kind; when they are due."""
        due_ms = self.clock.now_ms() + round(1000 * seconds)
        for kind in kinds:
            timer = Timer("w", "n", kind, due_ms)
            await self.database.run(partial(timers.put, shard=0, timer=timer))
        return due_ms


@asynccontextmanager
async def around() -> AsyncIterator[Around]:
    server = MemoryServer()
    async with Silent() as database, Supervisor() as background, MemoryBroker(server, name="dispatcher") as broker:
        await broker.declare(base_topology() + shard_queues(0))
        made = Around(broker, database, background, server)
        made.timer_service.open()
        yield made
        made.timer_service.close()


@pytest.mark.parametrize("look", ["ring", "look again"])
async def test_alarm_rings_after_an_outage_of_the_store(monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    monkeypatch.setattr(timer_service, "AGAIN_MS", 20)
    async with around() as made:
        due_ms = await made.plan(RETRY_TIMER)
        made.database.silent = 3

        acts: dict[str, Callable[[], Any]] = {
            "ring": lambda: made.timer_service.set(due_ms),
            "look again": made.timer_service.look_again,
        }
        acts[look]()

        await eventually(lambda: set(made.fired) == {RETRY_TIMER})
        assert made.database.silent == 0


@in_virtual_time
async def test_timer_that_is_due_behind_the_next_one_costs_no_read_of_the_store() -> None:
    async with around() as made:
        made.timer_service.set_no_later(await made.plan(RETRY_TIMER, seconds=5))
        for number in range(100):
            made.timer_service.set_no_later(await made.plan(APPROVAL_TIMER, seconds=10 + number / 10))
        before = made.database.reads
        made.timer_service.set_no_later(await made.plan(limits.DEADLINE_TIMER, seconds=4))
        await made.listen()
        await asyncio.sleep(30)

    assert before == 0
    order = sorted(made.fired, key=lambda kind: made.fired[kind])
    assert order == [limits.DEADLINE_TIMER, RETRY_TIMER, APPROVAL_TIMER]
    assert made.fired[RETRY_TIMER] - made.fired[limits.DEADLINE_TIMER] == pytest.approx(1)


@in_virtual_time
async def test_timer_that_is_set_while_the_store_is_read_fires_in_time() -> None:
    async with around() as made:
        now = asyncio.get_running_loop().time
        await made.plan(APPROVAL_TIMER, seconds=60)
        made.database.held = asyncio.Event()
        made.timer_service.look_again()
        await eventually(lambda: made.database.reads == 1)
        set_at = now()
        made.timer_service.set_no_later(await made.plan(RETRY_TIMER, seconds=1))
        made.database.held.set()
        await asyncio.sleep(90)

    assert made.fired[RETRY_TIMER] - set_at == pytest.approx(1, abs=0.1)
    assert set(made.fired) == {RETRY_TIMER, APPROVAL_TIMER}


@in_virtual_time
@pytest.mark.parametrize("refused", [APPROVAL_TIMER, RETRY_TIMER])
async def test_timer_that_cannot_be_carried_out_is_tried_once_a_second_and_holds_up_no_other(refused: str) -> None:
    async with around() as made:
        made.refused = refused
        made.timer_service.set(await made.plan(APPROVAL_TIMER, RETRY_TIMER))
        await asyncio.sleep(10)
        await made.plan(limits.DEADLINE_TIMER, seconds=0.5)
        await made.listen()
        await asyncio.sleep(10)

    assert 15 <= made.refusals <= 22
    assert set(made.fired) == {APPROVAL_TIMER, RETRY_TIMER, limits.DEADLINE_TIMER}


@in_virtual_time
async def test_limits_ring_when_all_that_agents_told_before_has_had_its_time_to_come() -> None:
    async with around() as made:
        now = asyncio.get_running_loop().time
        began = now()
        due_ms = await made.plan(*limits.TIME_LIMIT_TIMERS, RETRY_TIMER)
        await made.plan(APPROVAL_TIMER, seconds=4.3)
        made.timer_service.set(due_ms)
        await asyncio.sleep(60)
        unheard = {kind: round(at - began, 1) for kind, at in made.fired.items()}

        listened = now()
        await made.listen()
        await asyncio.sleep(60)

        assert unheard == {RETRY_TIMER: 0.0, APPROVAL_TIMER: 4.3}
        assert set(made.fired) - set(unheard) == limits.TIME_LIMIT_TIMERS
        for kind in limits.TIME_LIMIT_TIMERS:
            assert LATE_REPORTS_SECONDS <= made.fired[kind] - listened <= LATE_REPORTS_SECONDS + 1
        assert made.database.reads < 3 * 65 + 20, "it looks once a second"


@in_virtual_time
@pytest.mark.parametrize("blocked", [False, True], ids=["away", "blocked"])
async def test_limits_do_not_ring_while_the_broker_takes_nothing(blocked: bool) -> None:
    async with around() as made:
        await made.listen()
        await asyncio.sleep(10)
        made.timer_service.set(await made.plan(*limits.TIME_LIMIT_TIMERS, seconds=5))
        (made.server.block if blocked else made.server.stop)()
        made.background.start(made.say_something(), name="say")
        await asyncio.sleep(30)
        early = dict(made.fired)

        (made.server.unblock if blocked else made.server.start)()
        returned = asyncio.get_running_loop().time()
        await asyncio.sleep(10)

        assert early == {}
        assert set(made.fired) == limits.TIME_LIMIT_TIMERS
        assert all(at - returned > LATE_REPORTS_SECONDS - 1.1 for at in made.fired.values())


@in_virtual_time
@pytest.mark.parametrize("gone", [False, True], ids=["", "another queue is gone"])
async def test_limits_ring_in_time_when_agents_are_heard(gone: bool) -> None:
    async with around() as made:
        await made.broker.declare(shard_queues(1))
        await made.listen()
        await made.broker.consume(routing.results_queue(1), lambda one: one.ack(), prefetch=1)
        await asyncio.sleep(10)
        if gone:
            await made.broker.delete_queue(routing.results_queue(1))
        due_ms = await made.plan(*limits.TIME_LIMIT_TIMERS, seconds=5)
        made.timer_service.look_again()
        await asyncio.sleep(5.1)

        assert made.broker.connected != gone
        assert set(made.fired) == limits.TIME_LIMIT_TIMERS
        assert made.clock.now_ms() - due_ms == 100


@in_virtual_time
async def test_what_is_no_limit_rings_behind_any_number_of_limits_that_are_held() -> None:
    async with around() as made:
        due_ms = await made.plan()
        for number in range(250):
            timer = Timer("w", f"n{number}", limits.START_TIMER, due_ms)
            await made.database.run(partial(timers.put, shard=0, timer=timer))
        await made.plan(RETRY_TIMER, seconds=1)

        made.timer_service.set(due_ms)
        await asyncio.sleep(5)

        assert set(made.fired) == {RETRY_TIMER}


@in_virtual_time
async def test_limits_are_held_when_the_store_is_back_for_what_agents_told_is_not_recorded_yet() -> None:
    async with around() as made:
        await made.listen()
        await asyncio.sleep(10)
        due_ms = await made.plan(*limits.TIME_LIMIT_TIMERS)
        made.database.silent = 3
        made.timer_service.set(due_ms)

        await eventually(lambda: not made.database.silent)
        answered = asyncio.get_running_loop().time()
        await asyncio.sleep(10)

        assert set(made.fired) == limits.TIME_LIMIT_TIMERS
        assert all(at - answered > LATE_REPORTS_SECONDS - 1.1 for at in made.fired.values())


@in_virtual_time
@pytest.mark.parametrize("lost", ["away", "ended", "deaf from the beginning"])
async def test_limits_are_held_after_an_ear_was_lost_whoever_noticed(lost: str) -> None:
    async with around() as made:
        if lost == "deaf from the beginning":
            await made.consume()
            made.server.stop()
            await asyncio.sleep(1)
            made.timer_service.listen(made.consumers)
        else:
            await made.listen()
        await asyncio.sleep(10)
        if lost == "away":
            made.server.stop()
            await asyncio.sleep(10)
        late = 1.5 if lost == "deaf from the beginning" else 0.5
        made.timer_service.set(await made.plan(*limits.TIME_LIMIT_TIMERS, seconds=late))
        if lost == "ended":
            made.server.cancel_consumers(routing.results_queue(0))
        else:
            made.server.start()
        back = asyncio.get_running_loop().time()
        await asyncio.sleep(0.4)
        heard = made.consumers[0].active
        await asyncio.sleep(10)

        assert heard or lost != "ended", "before the limits are due"
        assert made.consumers[0].active
        assert set(made.fired) == limits.TIME_LIMIT_TIMERS
        assert all(at - back > LATE_REPORTS_SECONDS for at in made.fired.values())


@in_virtual_time
async def test_ears_that_are_lost_again_and_again_are_looked_for_once() -> None:
    async with around() as made:
        await made.listen()
        made.server.stop()
        await asyncio.sleep(1)
        before = len(made.background)

        for _ in range(10):
            made.timer_service.deafened()

        assert len(made.background) == before


SOON = "20ms"


def paused(pause: str) -> Workflow:
    flow = Workflow("paused")
    match pause:
        case "wait":
            flow.task(CAPABILITY, after=[flow.wait(SOON)], name="only")
        case "delay":
            flow.task(CAPABILITY, name="only", delay=SOON)
        case "approval":
            flow.task(CAPABILITY, after=[flow.approval("now?", timeout=SOON, on_timeout="grant")], name="only")
        case "retry":
            flow.task(CAPABILITY, name="only", retry=Retry(max_attempts=2, first=SOON))
        case "loop":
            flow.task(CAPABILITY, name="only", repeat={"until": "result.done", "most": 2, "every": SOON})
        case "child":
            child = Workflow("child")
            child.task(CAPABILITY, name="only", retry=Retry(max_attempts=1))
            flow.workflow(child, name="run", retry=Retry(max_attempts=2, first=SOON))
    return flow


@pytest.mark.parametrize(
    ("pause", "outcome"),
    [
        ("wait", None),
        ("delay", None),
        ("approval", None),
        ("retry", failed(retryable=True)),
        ("loop", completed({"done": False})),
        ("child", failed()),
    ],
)
async def test_task_that_waits_for_its_time_is_published(lone: LoneWorker, pause: str, outcome: Outcome | None) -> None:
    await lone.start(paused(pause))
    await eventually(lambda: lone.published() == 1)
    if outcome is not None:
        ((node_key, flight),) = lone.worker.in_flight
        await lone.say(Finished(node_key, flight.fence, flight.publication, outcome))
        await eventually(lambda: lone.published() == 2)


@pytest.mark.parametrize("dies", [False, True])
async def test_result_that_waited_for_the_next_dispatcher_counts_and_else_the_limit_holds(dies: bool) -> None:
    ended: list[str] = []
    agent, flow = Agent("worker"), Workflow("one")
    flow.task("some.work", name="only", deadline="20s")

    @agent.capability("some.work")
    async def work(_: None) -> None:
        await asyncio.sleep(5)
        ended.append("work")

    async with MortalFleet([agent]) as fleet:
        run = await fleet.start(flow)
        await fleet.advance("1s")
        fleet.kill("dispatcher")
        if dies:
            fleet.kill("worker")
        await fleet.advance("30s")
        assert ended == ([] if dies else ["work"])
        await fleet.restart("dispatcher")

        assert await run.wait(timeout="10s") == ("failed" if dies else "completed")
