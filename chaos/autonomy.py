"""`make autonomy`: mixed workflows under one fault a second, and how many of them needed a person, by the audit trail.

Two in five workflows need an approval: most of low risk, which a rule approves; many of medium risk, approved by a
rule, or learned from outcomes; few of high risk, which a person grants. The person of a run answers as a person would
who looks every second, and is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from chaos.faults import schedule as faults
from chaos.faults.schedule import Fault
from chaos.faults.strangers import Strangers
from chaos.history import SUFFIX, Scribe
from chaos.load.generators import Generators
from chaos.load.pace import Pace
from chaos.load.work import CAPABILITY
from chaos.nemesis import Nemesis
from chaos.testbed import ChaosTestbed, StoreKind, private_store, private_testbed
from coditect import CoditectError, Retry, Workflow
from coditect.aio.loop import run_loop
from coditect.broker.rabbitmq import AmqpBroker
from coditect.client.approvals import AuditRow, FinishedCounts
from coditect.client.client import Client
from coditect.local.state import make_private
from coditect.settings.settings import Settings
from coditect.workflow.definition import LEAST_HEARTBEAT_MS, Call, Definition, Each, Work
from coditect.workflow.states import WorkflowState

T = TypeVar("T")
KINDS = (
    faults.AGENT_KILL, faults.AGENT_STOP, faults.DISPATCHER_KILL, faults.DISPATCHER_STOP, faults.REDIS_KILL,
    faults.REDIS_STOP, faults.BROKER_KILL, faults.BROKER_STOP, faults.BROKER_PART, faults.REDIS_PART,
)  # fmt: skip
"""The kinds of faults: a process killed or paused, a dependency down, silent, or cut off."""
GUARDED = 0.4
"""The share of workflows that need an approval."""
RISKS = {"low": 60, "medium": 24, "learned": 13, "high": 3}
"""How often each kind of approval is drawn."""
PATIENT = Retry(max_attempts=40, first="100ms", cap="2s")
"""The attempts of a task: each agent is gone every few seconds, and may be so in every attempt of a longer task."""
LEAST_AUTONOMY, LEAST_COMPLETION, LEAST_GUARDED, LEAST_RISKY, LEAST_FAULTS = 0.95, 0.99, 0.3, 0.2, 1.0
POLICY = """
rules:
  - {name: low, of: task, workflow: guarded-low, node: act, risk: low, action: approve}
  - {name: medium, of: approval, workflow: guarded-medium, risk: medium, action: approve}
  - {name: learned, of: task, workflow: guarded-learned, node: act, risk: medium, action: ask, learn: true}
  - {name: high, of: task, workflow: guarded-high, node: act, risk: high, action: ask}
learning: {threshold: 0.6, window: 50, recovery: 10, ceiling: medium}
"""
FAULT_SECONDS = 0.75
"""The pause between two faults; one that finds no victim at work is missed, and not counted."""
ANSWER_SECONDS = 1.0
AGAIN_SECONDS = 0.25
WAIT_SECONDS = 1_800.0
LONGEST_SECONDS = 7_200.0
TOLD_EVERY = 50
"""The number of ended workflows after which the progress is printed again."""


@dataclass(frozen=True, slots=True)
class AutonomyOrder:
    """The parameters of an autonomy measurement: seed, number of workflows in all and at once, folder and store."""

    seed: int
    workflows: int
    at_once: int
    folder: Path
    store: StoreKind = StoreKind.SQLITE


@dataclass(frozen=True, slots=True)
class AutonomyResult:
    """The figures of an autonomy measurement: its load's counts, and the control plane's counters and audit trail."""

    order: AutonomyOrder
    ended: Counter[str]
    counted: FinishedCounts
    trail: tuple[AuditRow, ...]
    faults: int
    seconds: float

    def lines(self) -> list[str]:
        """Return the figures, and the decisions in the audit trail, as lines for a person."""
        told = [
            f"{self.order.workflows} workflows, {self.order.at_once} at once, {self.seconds:.0f} s, "
            f"{self.faults} faults",
            *(_line(*rate) for rate in self.rates()),
            f"counted by the control plane: {self.counted.finished} finished, {self.counted.completed} completed, "
            f"{self.counted.by_hand} by hand; ended: {dict(self.ended)}",
            "decisions in the audit trail:",
        ]
        decided = Counter((row.decision, row.by or "-", row.risk or "-", row.rule or "-") for row in self.trail)
        return told + [
            f"  {count:>5}  {what:<8} by {by:<10}  risk {risk:<6}  rule {rule}"
            for (what, by, risk, rule), count in sorted(decided.items())
        ]

    def rates(self) -> list[tuple[str, float, float]]:
        """Return each figure with its name, its value, and the minimum that it must reach."""
        guarded = {row.workflow for row in self.trail}
        risky = {row.workflow for row in self.trail if row.risk in ("medium", "high")}
        started = self.order.workflows
        return [
            ("autonomy", self.counted.autonomy or 0.0, LEAST_AUTONOMY),
            ("completion", self.ended[WorkflowState.COMPLETED.value] / started, LEAST_COMPLETION),
            ("workflows with an approval", len(guarded) / started, LEAST_GUARDED),
            ("of these at medium or high risk", len(risky) / max(1, len(guarded)), LEAST_RISKY),
            ("faults a second", self.faults / self.seconds, LEAST_FAULTS),
        ]

    @property
    def passed(self) -> bool:
        """Tell whether every figure reaches its minimum, and client and control plane saw all workflows end."""
        whole = self.counted.finished == self.ended.total() == self.order.workflows
        return whole and all(value >= least for _, value, least in self.rates())


def _line(name: str, value: float, least: float) -> str:
    word = "pass" if value >= least else "FAIL"
    return f"{word}  {name:<34} {value:7.2%}  at least {least:.0%}"


async def measure(order: AutonomyOrder) -> AutonomyResult:
    """Empty the order's folder, run the workflows on a private fleet under faults, and return the figures.

    Raises:
        MissingServer, StartFailed, AlreadyUp: when the servers or processes cannot start.
    """
    shutil.rmtree(order.folder, ignore_errors=True)
    make_private(order.folder)
    policy, history = order.folder / "approvals.yaml", order.folder / "history"
    policy.write_text(POLICY)
    scribe = Scribe(history / f"chaos{SUFFIX}", "chaos")
    async with private_store(order.store, order.folder, environ=os.environ) as store:
        settings = {"CODITECT_STORE_URL": store.url, "CODITECT_APPROVAL_POLICY": str(policy)}
        async with private_testbed(
            order.folder,
            history,
            environ=os.environ,
            processes={"dispatcher": 2, "agent": 4},
            settings=settings | {"CODITECT_LOG_LEVEL": "WARNING"},
        ) as testbed:
            await testbed.start()
            own = Settings(amqp_url=testbed.servers.amqp_url, redis_url=testbed.servers.redis_url)
            async with Client.connecting(own) as client, AmqpBroker(own.amqp_url, name="autonomy") as broker:
                strangers = Strangers(broker, scribe.note, Random(order.seed))  # noqa: S311 - it is to be foreseen
                nemesis = Nemesis(testbed, scribe.note, strangers, store.cluster, wait=False)
                load = MixedLoad(client, order)
                ended, _ = await asyncio.gather(load.run(), _break(testbed, nemesis, load.counted(order)))
                report = await _insist(lambda: client.approvals.autonomy(since_ms=load.since_ms, until_ms=_now_ms()))
                trail = await _insist(lambda: _whole(client))
    scribe.close()
    injected = load.faults - nemesis.missed
    return AutonomyResult(order, ended, report.workflows, tuple(trail), injected, load.seconds)


async def _break(testbed: ChaosTestbed, nemesis: Nemesis, planned: Iterator[Fault]) -> None:
    """Inject the planned faults, and then start each process that they left dead."""
    async with nemesis.keeping():
        await nemesis.run(planned)
    await testbed.start()


class MixedLoad:
    """The load of a measurement: workflows, and a simulated person who grants the approvals that they ask for."""

    def __init__(self, client: Client, order: AutonomyOrder) -> None:
        self._client = client
        self._order = order
        self._random = Random(f"{order.seed}/autonomy")  # noqa: S311 - it is to be foreseen
        pace = Pace(workflows=0, tasks=0, width=2, milliseconds=(100, 5_000))
        self._shapes = Generators(self._random, pace)
        self._done = asyncio.Event()
        self._begun = time.monotonic()
        self.since_ms = _now_ms()
        self.seconds = 0.0
        """The seconds in which faults were injected: until the last workflow was started."""
        self.faults = 0

    async def run(self) -> Counter[str]:
        """Run all workflows, the ordered number of them side by side, and return how many ended in which state."""
        flows = iter([_patient(self._drawn().definition()) for _ in range(self._order.workflows)])
        ended: Counter[str] = Counter()
        person = asyncio.create_task(self._answer())
        async with asyncio.TaskGroup() as group:
            for _ in range(self._order.at_once):
                group.create_task(self._one_after_another(flows, ended))
        person.cancel()
        return ended

    def counted(self, order: AutonomyOrder) -> Iterator[Fault]:
        """Yield faults, drawn by the order's seed, until all workflows have been started; count them in `faults`."""
        for number, fault in enumerate(faults.schedule(order.seed, LONGEST_SECONDS, KINDS)):
            if self._done.is_set():
                return
            self.faults += 1
            yield replace(fault, at_seconds=number * FAULT_SECONDS)

    async def _one_after_another(self, flows: Iterable[Definition], ended: Counter[str]) -> None:
        for flow in flows:
            key = f"autonomy-{self._random.getrandbits(64):x}"
            run = await _insist(partial(self._client.start, flow, idempotency_key=key))
            state = await _insist(partial(run.wait, timeout=WAIT_SECONDS))
            ended[state.value] += 1
            if ended.total() % TOLD_EVERY == 0:
                sys.stderr.write(f"{time.monotonic() - self._begun:6.0f} s  {dict(ended)}\n")
        if not self._done.is_set():  # every workflow was started: from now on they come to their ends in calm
            self._done.set()
            self.seconds = time.monotonic() - self._begun

    def _drawn(self) -> Workflow:
        if self._random.random() >= GUARDED:
            shapes = self._shapes
            return self._random.choice([shapes.layers, shapes.fan, shapes.chain, shapes.spread, shapes.choice])()
        kind = self._random.choices([*RISKS], [*RISKS.values()])[0]
        flow = Workflow(f"guarded-{kind}")
        before = flow.task(CAPABILITY, self._shapes.work(), name="prepare")
        if kind == "medium":
            artifacts = {"prepared": before.result["token"]}
            before = flow.approval("act?", after=[before], name="gate", timeout="1h", artifacts=artifacts)
        act = flow.task(CAPABILITY, self._shapes.work(), after=[before], name="act")
        flow.task(CAPABILITY, self._shapes.work(), after=[act], name="check")
        return flow

    async def _answer(self) -> None:
        while True:
            with suppress(CoditectError):  # somebody is down: the person looks again in a second
                async for row in self._client.approvals.list(limit=100):
                    await self._client.workflows.get(row.workflow).grant(row.node, by="the person")
            await asyncio.sleep(ANSWER_SECONDS)


def _patient(definition: Definition) -> Definition:
    """Return a copy of a workflow's definition that gives its tasks many attempts and the shortest heartbeat."""

    def patient(work: Work) -> Work:
        match work:
            case Call():
                return replace(work, retry=PATIENT, heartbeat_ms=LEAST_HEARTBEAT_MS)
            case Each(call=call):
                return replace(work, call=replace(call, retry=PATIENT, heartbeat_ms=LEAST_HEARTBEAT_MS))
            case _:
                return work

    return replace(definition, nodes=tuple(replace(node, work=patient(node.work)) for node in definition.nodes))


async def _insist(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except CoditectError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(AGAIN_SECONDS)


async def _whole(client: Client) -> list[AuditRow]:
    return [row async for row in client.approvals.audit()]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the autonomy, print the figures, and return 0 if the measurement passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m chaos.autonomy", description=__doc__)
    parser.add_argument("--workflows", type=int, default=1_000)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(".coditect") / "autonomy")
    parser.add_argument("--store", choices=[kind.value for kind in StoreKind], default=StoreKind.SQLITE.value)
    given = parser.parse_args(arguments)
    order = AutonomyOrder(given.seed, given.workflows, given.at_once, given.folder.resolve(), StoreKind(given.store))
    logging.disable(logging.CRITICAL)  # everything is lost and found all the time
    result = run_loop(measure(order))
    sys.stdout.write("\n".join(result.lines()) + "\n")
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
