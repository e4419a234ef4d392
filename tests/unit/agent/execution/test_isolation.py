"""Suspects: what happens to them, and how many of them run at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from coditect import Agent, Context, Options, Retry
from coditect.agent.execution import Execution, Suspicion
from coditect.agent.quarantine import MANY_DELIVERIES, Isolation, mark_of
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.errors import TaskCanceled
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.task import Task
from coditect.wire import routing
from coditect.wire.json import loads
from coditect.wire.tasks import read_task
from tests.support import eventually, whole_lines
from tests.unit.agent.poison_agent import poison
from tests.unit.agent.processes.test_process_handlers import _alive
from tests.unit.agent.scene import Running, Scene, failure_of

pytestmark = pytest.mark.usefixtures("home")


async def handed_back(scene: Scene, capability: str, times: int = 1) -> None:
    """Somebody takes what waits and gives it back, again and again."""
    broker = await scene.broker()
    for _ in range(times):
        delivery = await broker.get(routing.task_queue(capability, Priority.P1))
        assert delivery is not None
        delivery.requeue()


async def suspected(scene: Scene, client: Client, capability: str, value: object) -> Handle:
    """A task whose start is recorded for an agent that is gone."""
    handle = await client.submit(capability, value)
    async with MemoryBroker(scene.server, name="taker") as broker:  # what it holds at its end goes back
        while (delivery := await broker.get(routing.task_queue(capability, Priority.P1))) is not None:
            task = read_task(delivery.message, delivery.routing_key)
            if task.id == handle.task_id:
                await scene.registry.mark_start(mark_of(task), AgentId("gone-1"), keep_seconds=60)
                return handle
    raise AssertionError("it is not in its queue")


async def begun(home: Path) -> None:
    """Waits until the handler has begun, and forgets it."""
    await eventually((home / "started").exists)
    (home / "started").unlink()


async def declared(scene: Scene, agent: Agent = poison) -> Client:
    """The agent's queues are there, and nobody consumes them."""
    await (await scene.start(agent)).stop()
    return await scene.client()


async def die(scene: Scene, agent: Running) -> None:
    """As a process that is killed: its connection breaks, and its lease is renewed no more."""
    await agent.vanish()
    await scene.registry.deregister(AgentId(agent.agent_id))


async def start_to_die(scene: Scene) -> Running:
    return await scene.start(poison, beat_seconds=50.0, lease_seconds=60.0)


async def test_task_that_kills_its_agents_ends_dead_after_its_attempts(scene: Scene, home: Path) -> None:
    client = await declared(scene)
    handle = await client.submit("poison.do", "stay and die")
    for _ in range(2):
        agent = await start_to_die(scene)
        await begun(home)
        await die(scene, agent)

    await scene.start(poison)
    failure = await failure_of(handle)

    assert not (home / "started").exists(), "it did not run in an agent a third time"
    assert failure.reason == "process_died"
    letter = await scene.dead_letter("poison.do")
    errors = loads(str(letter.headers["x-coditect-errors"]).encode())
    assert [(one["attempt"], one["reason"]) for one in errors] == [(n, "process_died") for n in (1, 2, 3)]
    assert "exit_code=3" in errors[0]["message"]


async def test_neighbour_of_the_killer_is_done_with_its_first_attempt(scene: Scene, home: Path) -> None:
    client = await declared(scene)
    handle = await client.submit("poison.do", "stay")
    for _ in range(2):
        agent = await start_to_die(scene)
        await begun(home)
        await die(scene, agent)

    await scene.start(poison)

    assert await handle.result(str, timeout="100s") == "apart 1"
    assert scene.dead("poison.do") == 0


@pytest.mark.parametrize("leave", [Running.stop, Running.vanish], ids=["drained", "only cut off"])
async def test_task_of_an_agent_that_did_not_die_is_no_suspect(
    scene: Scene, home: Path, leave: Callable[[Running], Awaitable[None]]
) -> None:
    client = await declared(scene)
    await client.submit("poison.do", "stay")
    await handed_back(scene, "poison.do")
    former = await scene.start(poison, beat_seconds=0.1, lease_seconds=10.0)
    await begun(home)

    await leave(former)
    await scene.start(poison)

    await begun(home)


async def test_suspect_has_its_whole_context(scene: Scene, home: Path) -> None:
    client = await declared(scene)
    handle = await suspected(scene, client, "poison.ask", "go")

    async with client.events("task.progress") as events:
        await scene.start(poison, workspace=str(home))
        assert await handle.result(list[str], timeout="100s") == ["go", "home 1", "apart"]
        event = await anext(events)

    assert (event.subject, event.data["note"]) == (handle.task_id, "asks")
    assert list(home.iterdir()) == [], "the workspace is gone"


async def test_timeout_kills_a_suspect(scene: Scene, home: Path) -> None:
    client = await declared(scene)
    handle = await suspected(scene, client, "poison.hang", str(home / "pid"))

    await scene.start(poison)

    failure = await failure_of(handle)
    assert failure.reason == "process_died", "or its next attempt would run in an agent, and block it"
    assert "did not end within its time" in failure.message
    await eventually(lambda: not _alive(int((home / "pid").read_text())))


async def test_suspects_share_few_processes_and_hold_no_slots_meanwhile(
    scene: Scene, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    client = await declared(scene)
    handles = [await suspected(scene, client, "poison.span", str(home / "log")) for _ in range(3)]

    agent = await scene.start(poison, slots=3)
    await eventually(lambda: agent.runtime.load().suspended == 2)
    assert await client.request("poison.do", "go", str) == "home 1"
    for handle in handles:
        await handle.result(timeout="100s")

    assert (home / "log").read_text().split() == ["begin", "end"] * 3
    await eventually(lambda: (agent.runtime.load().running, agent.runtime.load().suspended) == (0, 0))


async def test_suspect_can_be_canceled(scene: Scene, home: Path) -> None:
    client = await declared(scene)
    handle = await suspected(scene, client, "poison.hang.on", str(home / "pid"))
    agent = await scene.start(poison)
    await eventually(lambda: whole_lines(home / "pid"))

    await handle.cancel()

    with pytest.raises(TaskCanceled):
        await handle.result(timeout="100s")
    await eventually(lambda: not _alive(int((home / "pid").read_text())))
    await eventually(lambda: agent.runtime.load().running == 0)


async def test_pinned_task_that_its_agent_s_inbox_hands_on_kills_two_agents_at_most(scene: Scene, home: Path) -> None:
    agent = await start_to_die(scene)
    handle = await scene.submit("poison.do", "stay and die", options=Options(pin=AgentId(agent.agent_id)))
    await begun(home)
    await die(scene, agent)
    agent = await start_to_die(scene)
    await begun(home)
    await die(scene, agent)

    await scene.start(poison)

    await failure_of(handle)
    assert not (home / "started").exists(), "it did not run in an agent a third time"


def nested() -> Agent:
    """An agent that no other process can find."""
    agent = Agent("nested", slots=2)

    @agent.capability("nested.do", retry=Retry(max_attempts=3, first="100ms"))
    async def do(value: str, ctx: Context) -> str:
        return value

    return agent


async def test_suspect_that_no_other_process_can_load_is_given_up_with_the_way_out(scene: Scene) -> None:
    agent = nested()
    client = await declared(scene, agent)
    handle = await suspected(scene, client, "nested.do", "go")

    await scene.start(agent)

    failure = await failure_of(handle)
    assert (failure.reason, (await handle.outcome()).attempt) == ("process_died", 1)
    assert "declare agent and handler" in failure.fix


@pytest.mark.parametrize(
    ("agent", "value"), [(poison, "apart 1"), (nested(), "go")], ids=["in a process of its own", "where it can"]
)
async def test_without_a_registry_many_deliveries_make_a_suspect(scene: Scene, agent: Agent, value: str) -> None:
    client = await declared(scene, agent)
    handle = await client.submit(f"{agent.name}.do", "go")
    await handed_back(scene, f"{agent.name}.do", MANY_DELIVERIES)
    scene.registry.failing = True

    await scene.start(agent)

    assert await handle.result(str, timeout="100s") == value


async def test_suspect_for_which_there_is_no_process_goes_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.agent.quarantine.RETURN_SECONDS", 0.01)
    client = await declared(scene)
    handle = await suspected(scene, client, "poison.plain", "go")
    spawn, refused = asyncio.create_subprocess_exec, [BlockingIOError("no process left")] * 3

    async def sometimes(*words: Any, **options: Any) -> Any:
        if refused:
            raise refused.pop()
        return await spawn(*words, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", sometimes)
    await scene.start(poison)

    assert await handle.result(str, timeout="100s") == "go apart"
    assert scene.dead("poison.plain") == 0


async def test_suspect_that_may_not_be_suspended_goes_back_as_a_suspect(scene: Scene) -> None:
    client = await declared(scene)
    handle = await suspected(scene, client, "poison.ask", "go")
    agent = await scene.start(poison, max_suspended=0)
    await eventually(lambda: agent.runtime.load().running == 1)
    await agent.stop()

    await scene.start(poison)

    assert (await handle.result(list[str], timeout="100s"))[2] == "apart"


TASK = Task("a.b", Priority.P1, b"1")


class Everyone:
    """Suspects everybody."""

    @asynccontextmanager
    async def examined(self, *_: object, **more: object) -> AsyncIterator[Suspicion]:
        yield Suspicion.RECORDED


class Suspending:
    """Counts who waits without a slot."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.waiting = 0

    def may_suspend(self, received: Execution) -> bool:
        return self.waiting < self.most

    def suspend(self, received: Execution) -> None:
        self.waiting += 1

    async def resume(self, received: Execution) -> None:
        self.abandon(received)

    def abandon(self, received: Execution) -> None:
        self.waiting -= 1


class Places:
    """One place for each depth, and who is in it."""

    def __init__(self, background: Supervisor, *, most_suspended: int = 10) -> None:
        self.intake = Suspending(most_suspended)
        self.isolation = Isolation(cast(Any, Everyone()), cast(Any, self.intake), slots=1)
        self.inside: list[str] = []
        self._background = background
        self._leave: dict[str, asyncio.Event] = {}

    def enter(self, name: str, *, depth: int = 0) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        return self._background.start(self._stay(name, depth), name=name)

    async def _stay(self, name: str, depth: int) -> None:
        received = Execution(replace(TASK, depth=depth), cast(Any, None), None)
        async with self.isolation.around(received):
            self.inside.append(name)
            await self._leave[name].wait()
        self.inside.remove(name)

    def leave(self, name: str) -> None:
        self._leave[name].set()


@pytest.fixture
async def background() -> AsyncIterator[Supervisor]:
    async with Supervisor() as opened:
        yield opened


async def test_who_is_awaited_by_a_suspect_has_a_place_of_its_own(background: Supervisor) -> None:
    stage = Places(background)
    stage.enter("parent", depth=0)
    stage.enter("child", depth=1)

    await eventually(lambda: stage.inside == ["parent", "child"])


async def test_who_may_not_wait_goes_on_without_a_place(background: Supervisor) -> None:
    stage = Places(background, most_suspended=0)
    stage.enter("first")
    stage.enter("second")

    await eventually(lambda: stage.inside == ["first", "second"])


async def test_who_is_canceled_while_waiting_takes_no_place_along(background: Supervisor) -> None:
    stage = Places(background)
    stage.enter("first")
    waiting = stage.enter("second")
    await eventually(lambda: stage.intake.waiting == 1)

    waiting.cancel()
    await eventually(waiting.done)
    assert stage.intake.waiting == 0
    stage.leave("first")
    stage.enter("third")

    await eventually(lambda: stage.inside == ["third"])
