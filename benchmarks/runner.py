"""The run of the chosen parts, one after the other, each on servers of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.parts import (
    backlog,
    breakers,
    commands,
    event_streams,
    fire_and_forget,
    footprint,
    http_api,
    locks,
    others,
    parallel_docs,
    priorities,
    round_trip,
    scaling,
    schedules,
    selection,
    slots,
    threads,
    throughput,
    timers,
    tracing,
    workflow_cost,
    workflow_size,
    workflow_state,
    workflow_stores,
    workflows,
)
from benchmarks.parts.sides import Side, agent_of, client_of
from benchmarks.profiling import profiled, read_shares
from benchmarks.programs.order import Mode, Order
from benchmarks.report import Report
from benchmarks.size import Size
from benchmarks.stage import ProgramFailed, Stage, open_stage
from benchmarks.verdict import Findings
from coditect.errors import CoditectError

Part = Callable[[Stage, Size], Awaitable[Findings]]

PARTS: dict[str, Part] = {
    throughput.NAME: throughput.run,
    fire_and_forget.NAME: fire_and_forget.run,
    round_trip.NAME: round_trip.run,
    others.NAME: others.run,
    slots.NAME: slots.run,
    priorities.NAME: priorities.run,
    footprint.NAME: footprint.run,
    scaling.BY_AGENTS.name: scaling.agents,
    scaling.BY_BODY.name: scaling.bodies,
    scaling.BY_CAPABILITIES.name: scaling.capabilities,
    backlog.NAME: backlog.run,
    workflows.NAME: workflows.run,
    workflow_cost.NAME: workflow_cost.run,
    workflow_size.NAME: workflow_size.run,
    workflow_state.NAME: workflow_state.run,
    locks.NAME: locks.run,
    threads.NAME: threads.run,
    commands.NAME: commands.run,
    breakers.NAME: breakers.run,
    schedules.NAME: schedules.run,
    timers.NAME: timers.run,
    tracing.NAME: tracing.run,
    http_api.NAME: http_api.run,
    event_streams.NAME: event_streams.run,
    selection.NAME: selection.run,
    parallel_docs.NAME: parallel_docs.run,
    workflow_stores.NAME: workflow_stores.run,
}
USUAL = tuple(name for name in PARTS if name != workflow_stores.NAME)
"""The parts of a run that names none: all but the one that needs FoundationDB."""


def now() -> str:
    """Return the present time as the name of a run."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


async def run_parts(names: Sequence[str], size: Size, *, command: str, tell: Callable[[Findings], None]) -> Report:
    """Measure the named parts, each on fresh servers, and return the report; `tell` gets each part's findings at once.

    Servers are fresh because a broker that had some thousand queues a while ago is slower, and once refused a request
    of the next part.
    """
    time, findings = now(), list[Findings]()
    machine: dict[str, str] = {}
    for name in names:
        async with open_stage() as stage:
            machine = machine or await describe(stage.settings.amqp_url, stage.settings.redis_url)
            found = await found_by(name, stage, size)
        findings.append(found)
        tell(found)
    return Report(time, command, machine, findings)


async def found_by(name: str, stage: Stage, size: Size) -> Findings:
    """Return the findings of a part, which are incomplete when it fails; the next parts are measured all the same."""
    try:
        return await PARTS[name](stage, size)
    except (ProgramFailed, workflow_size.TooFewCores, CoditectError, TimeoutError) as error:
        text = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        return Findings(name, (), (), None, notes=(f"could not be measured: {text}",), complete=False)


async def run_profile(size: Size, files: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Profile one long burst of Coditect's side, and return the shares of time by process and room.

    `files` names the files for the profiles of `client` and `agent`.

    Raises:
        NoProfile: when py-spy is missing or not allowed.
    """
    order = Order(Mode.BURST, size.warm_up, size.profiled_tasks)
    async with open_stage() as stage, stage.running(agent_of(Side.CODITECT, order)) as agent_pid:

        @asynccontextmanager
        async def both(client_pid: int) -> AsyncIterator[None]:
            async with AsyncExitStack() as watching:
                await watching.enter_async_context(profiled(client_pid, files["client"]))
                await watching.enter_async_context(profiled(agent_pid, files["agent"]))
                yield

        await stage.finished(client_of(Side.CODITECT, order), beside=both)
    return {process: read_shares(file) for process, file in files.items()}
