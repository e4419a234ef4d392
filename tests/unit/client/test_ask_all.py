"""One request to several agents at once, and what each of them answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from coditect import Agent, Answer, Options, Priority, ResultTimeout, TaskFailed
from coditect.agent.admission import Admission
from coditect.client.direct import NOT_TAKEN_RETRY_SECONDS
from coditect.errors import InputError, NotFound, TaskError, UnknownCapability
from coditect.model.ids import AgentId
from coditect.model.task import Limits, Task
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.tasks import task_message


def voter(name: str, vote: Callable[[Any], Any], *, slots: int = 1) -> Agent:
    agent = Agent(name, slots=slots)

    @agent.capability("plan.vote")
    async def handle(plan: str) -> Any:
        return await vote(plan)

    return agent


async def yes(plan: str) -> str:
    return f"yes to {plan}"


async def slowly(plan: str) -> str:
    await asyncio.sleep(10)
    return f"no to {plan}"


async def never(plan: str) -> None:
    await asyncio.get_running_loop().create_future()


async def crashing(plan: str) -> None:
    raise ValueError("no such plan")


def by_agent(answers: list[Answer]) -> dict[str, Answer]:
    return {answer.agent: answer for answer in answers}


async def test_answers_come_one_by_one_and_those_that_are_late_are_named_at_the_end() -> None:
    agents = [voter("quick", yes), voter("slow", slowly), voter("silent", never)]
    async with TestFleet(agents) as fleet:
        asking = fleet.client.ask_all("plan.vote", "a", agents=["slow", "quick", "silent"], timeout="20s")
        began = fleet.elapsed_seconds
        came = [(answer, round(fleet.elapsed_seconds - began)) async for answer in asking]
        await fleet.settled()
        loads = [process.load.running for process in fleet.agents]

    assert [(answer.agent, answer.value, seconds) for answer, seconds in came] == [
        ("quick", "yes to a", 0),
        ("slow", "no to a", 10),
        ("silent", None, 20),
    ]
    silent = came[-1][0]
    assert isinstance(silent.error, ResultTimeout)
    assert (silent.error.facts["agent"], silent.error.facts["status"]) == (silent.agent_id, "busy")
    assert loads == [0, 0, 0]  # it was canceled


async def test_without_names_every_process_with_the_capability_answers_for_itself() -> None:
    other = Agent("other")
    other.capability("plan.make")(yes)
    async with TestFleet([voter("quick", yes), other], replicas={"quick": 3, "other": 1}) as fleet:
        answers = [answer async for answer in fleet.client.ask_all("plan.vote", "a")]
        ids = {process.id for process in fleet.agents if process.name == "quick"}
        with pytest.raises(UnknownCapability, match=r"plan\.vote"):
            await anext(fleet.client.ask_all("plan.vot"))

    assert {answer.agent for answer in answers} == {answer.agent_id for answer in answers} == ids
    assert {answer.value for answer in answers} == {"yes to a"}


async def test_agent_without_an_answer_says_why() -> None:
    other = Agent("other")
    other.capability("plan.make")(yes)
    async with TestFleet([voter("quick", yes), voter("wrong", crashing), other]) as fleet:
        named = ["quick", "wrong", "other", "quik"]
        answers = by_agent([one async for one in fleet.client.ask_all("plan.vote", "a", agents=named, timeout="1h")])
        took = fleet.elapsed_seconds

    assert answers["quick"].value == "yes to a"
    assert isinstance(answers["wrong"].error, TaskFailed)
    assert isinstance(answers["other"].error, NotFound)
    assert answers["other"].error.facts["offers"] == ["plan.make"]
    assert isinstance(answers["quik"].error, NotFound)
    assert "quick" in str(answers["quik"].error.facts["nearest"])
    assert took < 1  # the failed handler was not tried again


async def test_busy_agent_is_asked_until_it_answers_and_no_other_answers_for_it() -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[[str], Any]:
        async def vote(plan: str) -> str:
            calls[name] += 1
            await asyncio.sleep(5 if plan == "long" else 0)
            return name

        return vote

    async with TestFleet([voter("busy", counted("busy")), voter("free", counted("free"))]) as fleet:
        busy = next(process.id for process in fleet.agents if process.name == "busy")
        await fleet.submit("plan.vote", "long", options=Options(pin=AgentId(busy)))
        await fleet.advance("100ms")
        late = [one async for one in fleet.client.ask_all("plan.vote", "b", agents=["busy"], timeout="3s")]
        answers = by_agent([one async for one in fleet.client.ask_all("plan.vote", "a", timeout="1m")])
        dead = await fleet.dead_letters()

    assert isinstance(late[0].error, ResultTimeout)
    assert "too busy" in late[0].error.sentence
    assert {name: answer.value for name, answer in answers.items()}[busy] == "busy"
    assert sorted(answer.value for answer in answers.values()) == ["busy", "free"]
    assert calls == {"busy": 2, "free": 1}
    assert dead == ()


async def test_answer_is_waited_for_as_long_as_the_caller_has_time() -> None:
    agent, waits = Agent("slow", slots=1), [480, 480, 0]

    @agent.capability("plan.vote", timeout="10m")
    async def vote(plan: str) -> str:
        await asyncio.sleep(waits.pop(0))
        return plan

    async with TestFleet([agent]) as fleet:
        for _ in range(2):
            await fleet.submit("plan.vote", "before", options=Options(pin=AgentId(fleet.agents[0].id)))
        (answer,) = [one async for one in fleet.client.ask_all("plan.vote", "a", timeout="1h")]

    assert (answer.value, answer.error) == ("a", None)


async def test_agent_of_an_older_version_that_runs_a_task_of_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "_is_for_another", lambda *_: False)
    async with TestFleet([voter("busy", never), voter("old", yes)]) as fleet:
        busy, old = (process.id for process in fleet.agents)
        await fleet.submit("plan.vote", "long", options=Options(pin=AgentId(busy)))
        await fleet.advance("100ms")
        (answer,) = [one async for one in fleet.client.ask_all("plan.vote", "a", agents=["busy"], timeout="1m")]

    assert (answer.value, answer.agent_id) == (None, busy)
    assert isinstance(answer.error, TaskError)
    assert answer.error.facts["ran_it"] == old


async def test_agents_that_are_asked_again_share_their_looks_at_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    find, looks = MemoryRegistry.find, Counter[str]()

    async def counted(registry: MemoryRegistry, search: Search) -> Any:
        looks["find"] += 1
        return await find(registry, search)

    async with TestFleet([voter("busy", never), voter("free", yes)], replicas={"busy": 8, "free": 1}) as fleet:
        busy = [process.id for process in fleet.agents if process.name == "busy"]
        for agent_id in busy:
            await fleet.submit("plan.vote", "long", options=Options(pin=AgentId(agent_id)))
        await fleet.advance("100ms")
        monkeypatch.setattr(MemoryRegistry, "find", counted)
        answers = [one async for one in fleet.client.ask_all("plan.vote", "a", agents=busy, timeout="10s")]

    assert {type(one.error) for one in answers} == {ResultTimeout}
    assert looks["find"] <= 2 + 10 / NOT_TAKEN_RETRY_SECONDS


async def test_agent_that_dies_meanwhile_is_reported_before_the_time_is_over() -> None:
    async with TestFleet([voter("doomed", never), voter("quick", yes)]) as fleet:
        asking = fleet.client.ask_all("plan.vote", "a", agents=["doomed", "quick"], timeout="1h")
        answers = [await anext(asking)]
        fleet.kill("doomed")
        answers += [answer async for answer in asking]
        took = fleet.elapsed_seconds

    assert isinstance(by_agent(answers)["doomed"].error, NotFound)
    assert took < 120


async def test_loop_that_is_left_early_cancels_the_tasks_that_still_run() -> None:
    async with TestFleet([voter("quick", yes), voter("silent", never)]) as fleet:
        async with aclosing(fleet.client.ask_all("plan.vote", "a", timeout="1h")) as asking:  # type: ignore[type-var]
            first = await anext(asking)
        await fleet.settled()
        loads = [process.load.running for process in fleet.agents]

    assert first.value == "yes to a"
    assert loads == [0, 0]


@pytest.mark.parametrize("wrong", [{"timeout": "soon"}, {"priority": "urgent"}, {"agents": 7}])
async def test_wrong_parameter_is_named(wrong: dict[str, Any]) -> None:
    async with TestFleet([voter("quick", yes)]) as fleet:
        with pytest.raises(InputError) as refused:
            await anext(fleet.client.ask_all("plan.vote", "a", **wrong))

    assert refused.value.facts["parameter"] in wrong


async def test_task_for_one_agent_alone_that_wants_no_answer_is_run_by_any_agent() -> None:
    limits, calls = Limits(only=AgentId("elsewhere-1")), Counter[str]()

    async def counted(plan: str) -> str:
        calls[plan] += 1
        return plan

    async with TestFleet([voter("quick", counted)]) as fleet:
        for reply_to, body in ((None, b'"unanswered"'), ("reply.client-test", b'"answered"')):
            task = Task("plan.vote", Priority.P1, body, limits=limits, reply_to=reply_to)
            await fleet._broker.publish(task_message(task), exchange=routing.SUBMIT, routing_key="plan.vote.p1")
        await fleet.settled()

    assert calls == {"unanswered": 1}
