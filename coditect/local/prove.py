"""The proof of the scorecard's targets: a private fleet under load, whose processes are killed one after the other.

The servers, the control plane, two processes of the agent `worker` below and one of `asker` run as under
`coditect up`, in a folder of their own. First the fleet works while the scorecard is taken as of any running fleet.
Then the agent that holds a lock, the dispatcher and the broker are killed under work. What a running fleet cannot tell
of itself, such as whether each submit was answered, is measured by the client that made the load.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coditect.agent.context import Context
from coditect.agent.declaration import Agent
from coditect.aio.supervisor import Supervisor
from coditect.client.client import Client
from coditect.client.coordination import LockRow
from coditect.client.handle import Handle
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import CoditectError, LockTaken, ResultTimeout, SetupError, install_command
from coditect.local.private import BROKER, PrivateProcesses
from coditect.local.servers import RABBITMQ_SBIN
from coditect.local.supervisor import Say
from coditect.local.up import Program, UpPlan, process_plan
from coditect.model.capability import Priority
from coditect.model.result import Status
from coditect.model.retry import Retry
from coditect.operations.connections import Connections
from coditect.operations.load import LoadCounts, LoadEnding, LoadPlan, drive, percentiles
from coditect.operations.scorecard import Measure, Scorecard, measure_fleet, score
from coditect.workflow.builder import Workflow

WORK, ASK, HOLD = "prove.work", "prove.ask", "prove.hold"
PROOF_SLOTS = 8
WORKERS = 2
LOAD = LoadPlan(2_000, 3 * WORKERS * PROOF_SLOTS, None, 100, 300, WORK, Priority.P1, 120.0)
"""The load under which the scorecard is taken: three tasks in flight for each slot, for about 25 s."""
WARM_UP_SECONDS = 4.0
ASKS = 100
LOCK_USERS = 10
LOCK_TURNS = 20
LOCK_RESOURCES = 4
LOCK_PATIENCE = "30s"
FREED = "prove:freed"
BATCH = 20
"""The tasks, and the workflows, under way when a process is killed."""
IN_HAND_SECONDS = 0.3
WORK_MS = 1_000
PROOF_SECONDS = 90.0
"""How long each fault may take before the proof is given up."""
LONGEST_SECONDS = 290.0
"""How long all of the proof may take."""
LOCK_SECONDS = 0.005
PROOF_POLL_SECONDS = 0.05
SHOWN_AFTER = ("autonomy", "completion", "capability matching")
"""The targets that are measured after the faults, and not under the load."""

worker = Agent("worker", version="1.0.0", slots=PROOF_SLOTS)
asker = Agent("asker", version="1.0.0", slots=PROOF_SLOTS)


@dataclass(frozen=True, slots=True)
class Work:
    """The input of a task that only waits."""

    milliseconds: int


@worker.capability(WORK, timeout="1m", retry=Retry(max_attempts=5, first="100ms", cap="1s"))
async def work(task: Work) -> None:
    """Wait as long as the task says."""
    await asyncio.sleep(task.milliseconds / 1000)


@worker.capability(HOLD, timeout="2m")
async def hold(resource: str, ctx: Context) -> None:
    """Hold a lock for a minute, or until the process is killed."""
    async with ctx.lock(resource):
        await asyncio.sleep(60)


@asker.capability(ASK, timeout="1m")
async def ask(task: None, ctx: Context) -> float:
    """Ask another agent to do nothing; return the milliseconds until it answered."""
    began = time.perf_counter()
    await ctx.request(WORK, Work(0))
    return 1000 * (time.perf_counter() - began)


Connect = Callable[[Mapping[str, str]], Connections]
"""A function that returns connections to a fleet, given the whole environment of the fleet's processes."""


async def prove_targets(
    control_plane: Iterable[Program], *, folder: Path, environ: Mapping[str, str], connect: Connect, say: Say
) -> Scorecard:
    """Start a private fleet below `folder`, load and break it, and return its scorecard; takes about two minutes.

    Raises:
        MissingServer: RabbitMQ or Redis is not installed.
        StartFailed: a server or a program died or was not ready in time.
        ResultTimeout: the proof took longer than 290 s, or the fleet did not recover from a fault in time.
        SetupError: no control plane is installed.
    """
    planes = tuple(control_plane)
    if not planes:
        raise SetupError("The proof needs a control plane", fix=install_command("dispatcher"))
    say("Starting a private RabbitMQ, Redis, control plane and agents")
    try:
        async with (
            asyncio.timeout(LONGEST_SECONDS),
            _private_fleet((*planes, *_agents()), folder, environ) as (fleet, variables),
        ):
            return score(await _proven(connect(variables), fleet, planes[0].name, say))
    except TimeoutError as error:
        raise ResultTimeout("The proof took too long", fix="run it on a machine that does nothing else") from error


async def _proven(opened: Connections, fleet: PrivateProcesses, control_plane: str, say: Say) -> dict[str, Measure]:
    async with opened.fleet() as client, Supervisor() as background:
        proof = _Proof(client, fleet, background, say)
        measures = await proof.under_load(opened)
        measures |= {"agent to agent": await proof.between_agents(), "lock collisions": await proof.at_locks()}
        measures |= await proof.under_faults(control_plane)
        after = await measure_fleet(opened)
        return measures | {name: after[name] for name in SHOWN_AFTER} | {"submits served": proof.served()}


def _agents() -> Iterable[Program]:
    named = [*((f"worker-{number}", "worker") for number in range(1, WORKERS + 1)), ("asker", "asker")]
    for name, agent in named:
        argv = (sys.executable, "-m", "coditect", "agent", "run", f"{__name__}:{agent}")
        yield Program(name, argv, announces_ready=True)


@asynccontextmanager
async def _private_fleet(
    programs: tuple[Program, ...], folder: Path, environ: Mapping[str, str]
) -> AsyncIterator[tuple[PrivateProcesses, Mapping[str, str]]]:
    """Run servers and programs inside the block, with default settings; yield them and their environment."""
    plain = {name: text for name, text in environ.items() if not name.startswith("CODITECT_") or name == RABBITMQ_SBIN}
    plan = process_plan(UpPlan(folder, folder, programs), environ=plain)
    async with PrivateProcesses(plan.children, folder=folder).running() as fleet:
        yield fleet, {**plain, **plan.variables}


class _Proof:
    """The load and the faults of one proof, and what the client saw of them."""

    def __init__(self, client: Client, fleet: PrivateProcesses, background: Supervisor, say: Say) -> None:
        self._client = client
        self._fleet = fleet
        self._background = background
        self._say = say
        self._now = asyncio.get_running_loop().time
        self._submitted = 0
        self._answered = 0
        self._repeated = 0
        """The submits that raised a retryable error and were made again."""
        self._flow = Workflow("prove")
        first = self._flow.task(WORK, Work(WORK_MS), name="first")
        self._flow.task(WORK, Work(0), after=[first], name="second")

    def served(self) -> Measure:
        """Return the share of all submits of the proof that were answered with a value."""
        how = f"{self._answered} of {self._submitted} submits under load and faults were answered with a value in time"
        if self._repeated:
            how += f"; {self._repeated} were refused at first, as while a broker is down, and made again"
        return Measure(100 * self._answered / max(1, self._submitted), how)

    async def under_load(self, opened: Connections) -> dict[str, Measure]:
        """Load the fleet, and take its measures meanwhile."""
        self._say(f"Load: {LOAD.tasks} tasks on {WORKERS * PROOF_SLOTS} slots")
        counts = LoadCounts()
        await self._client.start(self._flow)  # so that there is a workflow whose state can be read
        load = self._background.start(drive(self._client, LOAD, counts), name="load", awaited=True)
        await asyncio.sleep(WARM_UP_SECONDS)
        measures = await measure_fleet(opened)
        await load
        self._submitted += len(counts.answers)
        self._answered += sum(answer.ending is LoadEnding.COMPLETED for answer in counts.answers)
        return measures

    async def between_agents(self) -> Measure:
        """Let one agent ask others, several times at once."""
        taken = await asyncio.gather(*(self._client.request(ASK, None, float) for _ in range(ASKS)))
        how = f"99th percentile of {ASKS} requests from agent to agent, with the answers"
        return Measure(percentiles(taken).p99 / 1000, how)

    async def at_locks(self) -> Measure:
        """Let several users take turns at a few locks, and count those that met another holder or waited in vain.

        A fence that is not above those of all holders before is another holder, too.
        """
        held, doubled, timeouts, fences = set[str](), 0, 0, Counter[str]()

        async def take_turns(user: int) -> None:
            nonlocal doubled, timeouts
            for turn in range(LOCK_TURNS):
                resource = f"prove:{(user + turn) % LOCK_RESOURCES}"
                try:
                    async with self._client.lock(resource, timeout=LOCK_PATIENCE) as lock:
                        doubled += resource in held or lock.fence <= fences[resource]
                        held.add(resource)
                        fences[resource] = lock.fence
                        await asyncio.sleep(LOCK_SECONDS)
                        held.discard(resource)
                except LockTaken:
                    timeouts += 1

        await asyncio.gather(*map(take_turns, range(LOCK_USERS)))
        requests = LOCK_USERS * LOCK_TURNS
        how = f"{requests} requests for {LOCK_RESOURCES} locks: {doubled} met another holder, {timeouts} timed out"
        return Measure(100 * (doubled + timeouts) / requests, how)

    async def under_faults(self, control_plane: str) -> dict[str, Measure]:
        """Kill the agent that holds a lock, the control plane and the broker, each amid work."""
        freed_at = self._background.start(self._freed_at(), name="wait for a lock", awaited=True)
        holder = await self._holder()
        killed_at, seconds = await self._recovered_from(holder)
        freed = await asyncio.wait_for(freed_at, PROOF_SECONDS) - killed_at
        took = {"agent": seconds}
        for fault, name in (("dispatcher", control_plane), ("broker", BROKER)):
            _, took[fault] = await self._recovered_from(name)
        each = ", ".join(f"{fault} {seconds:.1f} s" for fault, seconds in took.items())
        how = f"from a kill until all work under way and new work was done, the slowest of: {each}"
        return {
            "recovery": Measure(max(took.values()), how),
            "locks freed": Measure(freed, "from the kill of the agent that held it until the next had the lock"),
        }

    async def _freed_at(self) -> float:
        """Have a task hold a lock, wait for the lock, and return when it was granted."""
        await self._client.submit(HOLD, FREED)
        while not [row async for row in self._client.locks.list(FREED)]:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(PROOF_POLL_SECONDS)
        async with self._client.lock(FREED):
            return self._now()

    async def _holder(self) -> str:
        """Return the name of the process that holds the lock, as soon as somebody waits for it."""
        async with asyncio.timeout(PROOF_SECONDS):
            rows = list[LockRow]()
            while len(rows) < 2:
                await asyncio.sleep(PROOF_POLL_SECONDS)
                rows = [row async for row in self._client.locks.list(FREED)]
        pids = {str(agent.agent_id): agent.registration.pid for agent in await self._client.agents.list()}
        names = {process.pid: name for name, process in self._fleet.processes.items()}
        return names[pids[rows[0].agent]]

    async def _recovered_from(self, name: str) -> tuple[float, float]:
        """Kill a process amid work and start it again; return when it was killed, and the seconds until all was done.

        Raises:
            ResultTimeout: the work was not done in time.
        """
        self._say(f"Killing {name}")
        tasks = [await self._submit(WORK_MS) for _ in range(BATCH)]
        runs = [await self._client.start(self._flow) for _ in range(BATCH)]
        await asyncio.sleep(IN_HAND_SECONDS)
        await self._fleet.kill(name)
        killed_at = self._now()
        try:
            async with asyncio.timeout(PROOF_SECONDS + PROOF_POLL_SECONDS):
                await asyncio.gather(
                    self._fleet.start_one(name),
                    self._serve_one(),
                    *map(self._answer, tasks),
                    *map(_ended, runs),
                )
        except TimeoutError as error:
            raise ResultTimeout("The fleet did not recover in time", killed=name, seconds=PROOF_SECONDS) from error
        return killed_at, self._now() - killed_at

    async def _serve_one(self) -> None:
        await self._answer(await self._submit(0))

    async def _submit(self, milliseconds: int) -> Handle:
        """Submit a task, again after each retryable error, as a client would."""
        self._submitted += 1
        while True:
            try:
                return await self._client.submit(WORK, Work(milliseconds))
            except CoditectError as error:
                if not error.retryable:
                    raise
                self._repeated += 1
                await asyncio.sleep(PROOF_POLL_SECONDS)

    async def _answer(self, task: Handle) -> None:
        """Count a task as answered if it completes in time."""
        with suppress(ResultTimeout):
            outcome = await task.outcome(timeout=PROOF_SECONDS)
            self._answered += outcome.status is Status.COMPLETED


async def _ended(run: WorkflowRun) -> None:
    with suppress(ResultTimeout):  # so long a recovery misses its target
        await run.wait(timeout=PROOF_SECONDS)
