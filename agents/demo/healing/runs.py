"""Runs of the healing demo, several at once: each injects one fault into one service and waits for the healing."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from agents.demo.fleet import running_fleet
from agents.demo.healing.faults import injected, possible_faults
from agents.demo.healing.guesser import SEED
from agents.demo.healing.ward import ORDERS, orders_of, running_till
from agents.deployment.service import Service
from agents.healing.diagnosis import Bounds, examine, trouble_of
from coditect import Client, WorkflowRun
from coditect.errors import ResultTimeout
from coditect.operations.coordination.healing import PATTERN, unwatch_service, watch_service
from coditect.workflow.definition import Definition
from coditect.workflow.patterns.pattern import make_workflow
from coditect.workflow.states import TaskState

T = TypeVar("T")
Say = Callable[[str], None]

AGENTS: Mapping[str, Sequence[str]] = {
    "detector-1": ("agents/healer.py:detector",),
    "healer-1": ("agents/healer.py:healer",),
    "healer-2": ("agents/healer.py:healer",),
    "doctor-1": ("agents/doctors.py:rules",),
    "doctor-2": ("agents/doctors.py:scores",),
    "doctor-3": ("agents/demo/healing/guesser.py",),
    "merger-1": ("coditect.integrations.merging",),
}
DOCTORS = ("cause.rules", "cause.scores", "cause.guess")
ROUNDS = 3
_BEGINS_WITHIN_SECONDS = 30.0
_ENDS_WITHIN_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class HealingOrder:
    """The parameters of a measurement: seed, number of runs, and how many at once."""

    seed: int
    runs: int
    at_once: int

    def kinds(self) -> list[str]:
        """Return each run's kind of fault: all as equally often as the number allows, in an order drawn by the seed."""
        possible = possible_faults()
        kinds = [possible[number % len(possible)] for number in range(self.runs)]
        Random(self.seed).shuffle(kinds)  # noqa: S311 - it is to be foreseen
        return kinds


@dataclass(frozen=True, slots=True)
class Round:
    """A single try to heal a service: the causes that agents voted for, what was done, and what was wrong after it."""

    votes: tuple[str, ...]
    cause: str
    done: str
    why: str


@dataclass(frozen=True, slots=True)
class HealingRun:
    """The result of one run: the injected fault, and what became of the service."""

    number: int
    kind: str
    seconds: float
    """From the beginning of the fault to the end of the workflow that healed the service."""
    rounds: tuple[Round, ...]
    failure: str
    """Why the service does not count as fixed without a person; empty when it does."""
    workflow: str = ""


@dataclass(frozen=True, slots=True)
class HealingFleet:
    """A running fleet whose agents watch and heal services in a folder."""

    client: Client
    definition: Definition
    """The workflow that watches and heals a service."""
    root: Path
    folder: Path
    """The folder of the services."""

    @asynccontextmanager
    async def watching(self, service: Service) -> AsyncIterator[WorkflowRun]:
        """Have a service watched and healed while the block runs; yield the workflow, once it watches.

        Raises:
            TimeoutError: it does not within half a minute.
        """
        name = service.folder.name
        watched = {"name": name, "folder": str(service.folder.relative_to(self.root)), "every_seconds": _LOOK_SECONDS}
        run = self.client.workflows.get(str(await watch_service(self.client, watched, self.definition)))
        try:
            async with asyncio.timeout(_BEGINS_WITHIN_SECONDS):
                while (await run.look("watch")).state is not TaskState.WORKING:  # noqa: ASYNC110 - it is on a server
                    await asyncio.sleep(_POLL_SECONDS)
            yield run
        finally:
            await unwatch_service(self.client, name)

    async def rounds_of(self, run: WorkflowRun) -> tuple[Round, ...]:
        """Return the ended rounds of a workflow that heals a service, in their order."""
        rows = {row.name: row async for row in run.nodes()}
        found = []
        for number in range(1, ROUNDS + 1):
            if f"verify_{number}" not in rows or rows[f"verify_{number}"].state is TaskState.SKIPPED:
                break
            children = rows[f"diagnose_{number}"].children
            vote = self.client.workflows.get(children[-1]) if children else None
            names = [f"vote_{doctor}" for doctor in range(1, len(DOCTORS) + 1)]
            votes = [_field((await vote.look(name)).value, "cause") for name in names] if vote else []
            fixed, verified = [(await run.look(f"{name}_{number}")).value for name in ("fix", "verify")]
            found.append(Round(tuple(votes), _field(fixed, "cause"), _field(fixed, "done"), _field(verified, "why")))
        return tuple(found)


def _field(value: Any, field: str) -> str:
    return str(value[field]) if isinstance(value, Mapping) else "-"


@asynccontextmanager
async def healing_fleet(
    root: Path,
    folder: Path,
    *,
    seed: int,
    say: Say,
    agents: Mapping[str, Sequence[str]] = AGENTS,
    pattern_arguments: Mapping[str, object] | None = None,
) -> AsyncIterator[HealingFleet]:
    """Start servers and agents that watch and heal services; stop all at the end.

    `pattern_arguments` has further arguments of the workflow's pattern.

    Raises:
        CoditectError: a server or an agent could not be started.
    """
    watched = folder / "services"
    shutil.rmtree(watched, ignore_errors=True)
    watched.mkdir(parents=True)
    arguments = {"doctors": [*DOCTORS], "rounds": ROUNDS, **(pattern_arguments or {})}
    definition = make_workflow(PATTERN, arguments)
    async with (
        running_fleet(root, folder, settings={SEED: str(seed)}, say=say, agents=agents) as fleet,
        Client.from_env(fleet.environ) as client,
    ):
        yield HealingFleet(client, definition, root, watched)


async def heal_all(fleet: HealingFleet, order: HealingOrder, *, done: Callable[[HealingRun], None]) -> list[HealingRun]:
    """Do all runs of an order, `at_once` at a time; call `done` after each, and return them in order of number."""
    waiting, ended = iter([*enumerate(order.kinds(), 1)]), list[HealingRun]()

    async def one_after_another(runs: Iterator[tuple[int, str]]) -> None:
        for number, kind in runs:
            ended.append(run := await heal(fleet, number, kind, seed=order.seed))
            done(run)

    async with asyncio.TaskGroup() as group:
        for _ in range(order.at_once):
            group.create_task(one_after_another(waiting))
    return sorted(ended, key=lambda run: run.number)


async def heal(fleet: HealingFleet, number: int, kind: str, *, seed: int) -> HealingRun:
    """Inject one fault into a fresh service, wait for the workflow that heals it, and return the result."""
    random = Random(f"{seed}/{number}")  # noqa: S311 - it is to be foreseen
    async with _in_threads(running_till(fleet.folder / f"till-{number}")) as service, fleet.watching(service) as run:
        began = time.time()
        async with _in_threads(injected(kind, service, random)):
            try:
                state = (await run.wait(timeout=_ENDS_WITHIN_SECONDS)).value
            except ResultTimeout:
                state = (await run.state()).value
            ended_ms = (await run.overview()).finished_at_ms
            seconds = (time.time() if ended_ms is None else ended_ms / 1_000) - began
            failure = await _failure(run, service, state)
            return HealingRun(number, kind, seconds, await fleet.rounds_of(run), failure, run.id)


async def _failure(run: WorkflowRun, service: Service, state: str) -> str:
    """Return why a service is not fixed: a bad end of its workflow, remaining trouble, or lost orders; else empty."""
    asked = (await run.look("escalate")).state
    if state != "completed" or asked is not TaskState.SKIPPED:
        return f"the workflow is {state}, the escalation {asked.value}"
    trouble = trouble_of(await asyncio.to_thread(examine, service), Bounds())
    kept = await asyncio.to_thread(orders_of, service)
    return trouble or ("" if kept == ORDERS else f"{ORDERS - kept} orders are lost")


@asynccontextmanager
async def _in_threads(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a blocking context manager in other threads, so that the event loop goes on."""
    value = await asyncio.to_thread(manager.__enter__)
    try:
        yield value
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


# What a person reads of it: each run as it ends, and figures for each kind of fault.

LEAST_FIXED = 0.95


def describe_run(run: HealingRun) -> str:
    """Return a run as text: its fault, and a line for each round with votes, remedy, and what was wrong afterwards."""
    end = f"NOT FIXED: {run.failure}" if run.failure else f"well after {run.seconds:.1f} s"
    lines = [f"{run.number:>3}  {run.kind}: {end}"]
    for number, step in enumerate(run.rounds, 1):
        why = f"; then {step.why}" if step.why else ""
        lines.append(f"       round {number}: votes {', '.join(step.votes)} -> {step.cause}: {step.done}{why}")
    return "\n".join(lines)


def describe_all(runs: Sequence[HealingRun], *, seconds: float) -> str:
    """Return text about all runs: a table by kind of fault, the runs that were not fixed, and the share that was."""
    kinds = sorted({run.kind for run in runs})
    rows = [("fault", "runs", "fixed", "p50 s", "p99 s"), *(_row(kind, runs) for kind in kinds), _row("all", runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (tuple(zip(row, widths, strict=True)) for row in rows)
    ]
    overruled = sum(any(vote != step.cause for vote in step.votes) for run in runs for step in run.rounds)
    longer = sum(len(run.rounds) > 1 for run in runs)
    load = os.getloadavg()[0]
    lines += [f"not fixed: run {run.number}, {run.kind}: {run.failure} ({run.workflow})" for run in runs if run.failure]
    lines.append(f"{overruled} votes overruled a doctor, {longer} runs took more than one round")
    lines.append(f"{fixed_share(runs):.0%} fixed without a person, in {seconds:.0f} s, load {load:.1f}")
    return "\n".join(lines)


def fixed_share(runs: Sequence[HealingRun]) -> float:
    """Return the share of runs whose service was fixed without a person."""
    return sum(not run.failure for run in runs) / max(1, len(runs))


def _row(kind: str, runs: Sequence[HealingRun]) -> tuple[str, ...]:
    counted = [run for run in runs if kind in ("all", run.kind)]
    times = sorted(run.seconds for run in counted if not run.failure)
    shares = (f"{times[min(len(times) - 1, int(share * len(times)))]:.1f}" if times else "-" for share in (0.5, 0.99))
    return kind, str(len(counted)), str(len(times)), *shares
