"""Handoffs in a fleet on virtual time: a running task goes to another agent, or stays where it is with the reasons."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from functools import partial
from random import Random
from typing import Any

import pytest

from coditect import Agent, Breaker, Context, From, HandoffOffer, PlainContext, Retry, TaskFailed, Workflow
from coditect.agent.services import Host
from coditect.registry.port import Search
from coditect.telemetry.metrics import ATTEMPTS, TASK_ERRORS, TASK_SECONDS, TASK_TIMEOUTS, MemoryMetrics
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState
from tests.support import eventually


def generalist(*, to: str = "ticket.billing", **more: Any) -> Agent:
    """An agent that hands off what it does not know, and says how it went otherwise."""
    agent = Agent("generalist", slots=2)

    @agent.capability("ticket.answer", timeout="10m")
    async def answer(ticket: dict[str, str], ctx: Context) -> dict[str, Any]:
        handoff = await ctx.hand_off(to, reason="billing", context={"tried": ["faq"]}, **more)
        return {"by": ctx.agent_id, "state": handoff.state, "reasons": dict(handoff.reasons), "why": handoff.why}

    return agent


def specialist(name: str = "billing", capability: str = "ticket.billing", *, slots: int = 2) -> Agent:
    agent = Agent(name, slots=slots)

    @agent.capability(capability)
    async def bill(ticket: dict[str, str], ctx: Context) -> dict[str, Any]:
        handoff = await ctx.handoff()
        told = {} if handoff is None else {"from": handoff.owner, "why": handoff.reason, "context": handoff.context}
        return {"by": ctx.agent_id.rpartition("-")[0], "ticket": ticket["text"], "attempt": ctx.attempt} | told

    return agent


def hesitant(seconds: float, *, accepts: bool = True) -> Agent:
    """A specialist that thinks so long before it takes a task over or declines it."""
    agent = specialist("slow")

    @agent.on_handoff
    async def wait(_: HandoffOffer) -> bool:
        await asyncio.sleep(seconds)
        return accepts

    return agent


def sleeping(agent: Agent) -> Agent:
    """The agent with a capability that keeps a slot busy."""

    @agent.capability("sleep", timeout="10m")
    async def sleep(_: None) -> None:
        await asyncio.sleep(30)

    return agent


async def answered(fleet: TestFleet, text: str = "refund") -> dict[str, Any]:
    handle = await fleet.client.submit("ticket.answer", {"text": text}, durable=True)
    return dict(await handle.result(timeout="5m"))


async def reasons(*others: Agent) -> list[str]:
    """Why none of the others takes a task over."""
    async with TestFleet(agents=[generalist(), *others], seed=7) as fleet:
        return list((await answered(fleet))["reasons"].values())


async def open_handoff(fleet: TestFleet) -> str:
    """The id of the handoff that is waited for, once there is one."""
    while not (rows := [row async for row in fleet.client.handoffs.list(open_only=True)]):
        await asyncio.sleep(0.1)
    return rows[0].handoff


async def test_task_goes_to_a_capability_with_its_reason_and_context() -> None:
    async with TestFleet(agents=[generalist(), specialist()], seed=1) as fleet:
        value = await answered(fleet)

        assert value.pop("from").startswith("generalist-")
        assert value == {
            "by": "billing",
            "ticket": "refund",
            "attempt": 1,
            "why": "billing",
            "context": {"tried": ["faq"]},
        }


@pytest.mark.parametrize("plain", [False, True])
async def test_accepted_handoff_is_no_failure_of_the_agent_that_gave_the_task_away(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = MemoryMetrics()
    monkeypatch.setattr("coditect.testing.fleet.Host", partial(Host, metrics=metrics))
    giver = Agent("giver", slots=2)

    if plain:

        @giver.capability("ticket.answer", timeout="10m")
        def answer_in_a_thread(ticket: dict[str, str], ctx: PlainContext) -> None:
            ctx.hand_off("ticket.billing", reason="billing")

    else:

        @giver.capability("ticket.answer", timeout="10m")
        async def answer(ticket: dict[str, str], ctx: Context) -> None:
            try:
                await ctx.hand_off("ticket.billing", reason="billing")
            finally:
                raise RuntimeError("the handler's own clean-up fails")

    async with TestFleet(agents=[giver, specialist()], seed=1) as fleet:
        assert (await answered(fleet))["by"] == "billing"
        await fleet.advance("30s")  # past the next heartbeat
        (record,) = await fleet.registry.find(Search(keyword="giver"))
        others = await fleet.registry.find(Search(keyword="billing"))

        assert (record.load.completed, record.load.failed) == (0, 0)
        assert [one.load.completed for one in others if one.agent_id != record.agent_id] == [1]

    failures = [metrics.counter(metric, capability="ticket.answer") for metric in (TASK_ERRORS, TASK_TIMEOUTS)]
    failures.append(metrics.counter(ATTEMPTS, outcome="failed"))
    assert [counter.value for counter in failures] == [0, 0, 0]
    assert metrics.counter(ATTEMPTS, outcome="completed").value == 1
    assert metrics.histogram(TASK_SECONDS, capability="ticket.answer").number() == 1


async def test_task_that_nobody_takes_goes_on_where_it_is_with_the_reasons() -> None:
    shy, full = specialist("shy"), sleeping(specialist("full", slots=1))

    @shy.on_handoff
    def decide(offer: HandoffOffer) -> str:
        return f"no {offer.reason} for me: {offer.input['text']}"

    async with TestFleet(agents=[generalist(), shy, full], seed=2) as fleet:
        await fleet.client.submit("sleep")
        await asyncio.sleep(2)
        value = await answered(fleet)

        reasons = {agent.rpartition("-")[0]: why for agent, why in value["reasons"].items()}
        assert (value["state"], value["why"]) == ("declined", "all declined")
        assert reasons == {
            "shy": "no billing for me: refund",
            "full": "it has no free slot, or other tasks wait for one",
        }


async def test_task_goes_to_the_named_agent_which_does_not_offer_it_or_accepts() -> None:
    peer = generalist(to="nobody.there")
    peer.name = "peer"
    async with TestFleet(agents=[generalist(to="stranger"), specialist("stranger", "other.work")], seed=3) as fleet:
        value = await answered(fleet)
        assert list(value["reasons"].values()) == ["it does not offer ticket.answer"]

    async with TestFleet(agents=[generalist(to="peer"), peer], seed=4) as fleet:
        value = await answered(fleet)
        assert value["by"].startswith("peer-")
        assert (value["state"], value["why"]) == ("declined", "no other living agent has that name or capability")


async def test_direct_task_is_refused_with_what_to_do() -> None:
    async with TestFleet(agents=[generalist(), specialist()], seed=5) as fleet:
        with pytest.raises(TaskFailed, match="durable=True"):
            await fleet.request("ticket.answer", {"text": "refund"})


async def test_agent_declines_by_a_plain_policy_in_a_thread_or_an_input_that_does_not_fit() -> None:
    careful, threads = specialist("careful"), set[int]()

    @careful.on_handoff
    def decide(_: HandoffOffer) -> str:
        threads.add(threading.get_ident())
        return "no"

    assert await reasons(careful) == ["no"]
    assert threads.isdisjoint({threading.get_ident()})

    numbers = Agent("numbers")

    @numbers.capability("ticket.billing")
    async def bill(ticket: int) -> int:
        return ticket

    (reason,) = await reasons(numbers)
    assert reason.startswith("the input does not fit")


@pytest.mark.parametrize("error", [RuntimeError("no"), StopIteration(), SystemExit(3), asyncio.CancelledError()])
@pytest.mark.parametrize("plain", [True, False])
async def test_agent_s_own_policy_decides_and_one_that_fails_declines(error: BaseException, plain: bool) -> None:
    asked: list[HandoffOffer] = []
    careful, broken = specialist("careful"), specialist("broken", slots=9)

    @careful.on_handoff
    async def decide(offer: HandoffOffer) -> None:
        asked.append(offer)

    def fail(_: HandoffOffer) -> bool:
        raise error

    async def fail_on_loop(offer: HandoffOffer) -> bool:
        return fail(offer)

    broken.on_handoff(fail if plain else fail_on_loop)

    async with TestFleet(agents=[generalist(), careful, broken], seed=6) as fleet:
        value = await answered(fleet)
        (row,) = [row async for row in fleet.client.handoffs.list()]

    assert value["by"] == "careful"
    assert list(row.reasons.values()) == [f"its on_handoff function failed: {type(error).__name__}"]
    assert [(one.hop, one.context, one.input) for one in asked] == [(1, {"tried": ["faq"]}, {"text": "refund"})]


@pytest.mark.parametrize(
    "guard", [{"breaker": Breaker("bank", failures=1, reset="1h")}, {"rate": "1/h"}], ids=["breaker", "rate"]
)
async def test_agent_whose_breaker_is_open_or_whose_rate_is_used_up_declines(guard: dict[str, Any]) -> None:
    guarded = Agent("guarded", slots=4)

    @guarded.capability("ticket.billing", retry=1, **guard)
    async def bill(ticket: dict[str, str]) -> None:
        raise OSError(ticket["text"])

    async with TestFleet(agents=[generalist(), guarded], seed=8) as fleet:
        await fleet.client.submit("ticket.billing", {"text": "the bank is down"})
        await asyncio.sleep(5)
        value = await answered(fleet)

    assert list(value["reasons"].values()) == ["its tasks of ticket.billing wait for a breaker or a rate"]


async def test_agent_that_drains_is_not_asked() -> None:
    async with TestFleet(agents=[generalist(), sleeping(specialist("leaving"))], seed=9) as fleet:
        await fleet.client.submit("sleep")
        await asyncio.sleep(2)
        draining = asyncio.create_task(fleet.drain("leaving"))
        await asyncio.sleep(2)
        value = await answered(fleet)
        assert not draining.done()
        await draining

    assert value["why"] == "no other living agent has that name or capability"
    assert value["reasons"] == {}


async def test_plain_handler_hands_off_and_ends() -> None:
    plain, ends = Agent("plain"), list[str]()

    @plain.capability("ticket.answer")
    def answer(ticket: dict[str, str], ctx: PlainContext) -> str:
        try:
            ctx.hand_off("ticket.billing", reason="billing")
        except Exception as error:
            ends.append(type(error).__name__)
            raise
        return "still here"

    async with TestFleet(agents=[plain, specialist()], seed=8) as fleet:
        value = await answered(fleet)

    assert value["by"] == "billing"
    await eventually(lambda: ends == ["TaskCanceled"])  # its thread ends in real time


async def test_node_of_a_workflow_is_handed_off_and_what_follows_gets_its_value() -> None:
    last = Agent("last")

    @last.capability("ticket.close")
    async def close(answer: dict[str, Any]) -> str:
        return f"closed by {answer['by']}"

    flow = Workflow("tickets")
    answer = flow.task("ticket.answer", {"text": "refund"}, name="answer")
    flow.task("ticket.close", From("results.answer"), after=[answer], name="close")
    async with TestFleet(agents=[generalist(), specialist(), last], seed=9) as fleet:
        run = await fleet.client.start(flow)
        assert await run.result(str, timeout="5m") == "closed by billing"
        statuses = [(one.node, one.status) async for one in run.attempts()]

    assert ("answer", "handed_off") in statuses
    assert ("answer", "completed") in statuses


async def test_person_withdraws_a_handoff_and_the_task_goes_on() -> None:
    async with TestFleet(agents=[generalist(), hesitant(7)], seed=10) as fleet:
        handle = await fleet.client.submit("ticket.answer", {"text": "refund"}, durable=True)
        await fleet.client.handoffs.withdraw(await open_handoff(fleet), by="ada", reason="keep it")
        value = await handle.result(dict, timeout="5m")

    assert (value["state"], value["why"]) == ("withdrawn", "keep it")


async def test_handler_that_waits_no_more_has_its_handoff_withdrawn() -> None:
    hasty = Agent("hasty")

    @hasty.capability("ticket.answer")
    async def answer(_: dict[str, str], ctx: Context) -> str:
        try:
            async with asyncio.timeout(2):
                await ctx.hand_off("ticket.billing")
        except TimeoutError:
            return "kept"
        return "came back"

    async with TestFleet(agents=[hasty, hesitant(5)], seed=12) as fleet:
        handle = await fleet.client.submit("ticket.answer", {"text": "refund"}, durable=True)
        assert await handle.result(str, timeout="5m") == "kept"
        (row,) = [row async for row in fleet.client.handoffs.list()]

    assert (row.state, row.by) == ("withdrawn", row.owner)


async def test_handoff_is_waited_for_while_no_dispatcher_answers() -> None:
    async with TestFleet(agents=[generalist(), hesitant(2, accepts=False)], seed=11) as fleet:
        handle = await fleet.client.submit("ticket.answer", {"text": "refund"}, durable=True)
        await open_handoff(fleet)
        fleet.pause("dispatcher")
        await asyncio.sleep(100)
        fleet.resume("dispatcher")
        value = await handle.result(dict, timeout="5m")

    assert value["state"] in {"declined", "expired"}


TASKS = 6
PLANE = "dispatcher"


def cast(random: Random, begun: list[tuple[str, int, str]]) -> list[Agent]:
    """Agents that hand off and take over after a while, and note under which fence each begins a task."""
    asker, taker = Agent("asker", slots=4), Agent("taker", slots=4)

    @asker.capability("job.begin", timeout="10m")
    async def begin(number: int, ctx: Context) -> dict[str, Any]:
        begun.append((ctx.task_id, ctx.fence, ctx.agent_id))
        await asyncio.sleep(3 * random.random())
        async with ctx.lock(f"job:{number}", ttl="2s", timeout="5m"):
            handoff = await ctx.hand_off("job.finish", context=number, timeout="20s")
            await asyncio.sleep(random.random())
            return {"fence": ctx.fence, "state": handoff.state}

    @taker.capability("job.finish", timeout="10m")
    async def finish(number: int, ctx: Context) -> dict[str, Any]:
        begun.append((ctx.task_id, ctx.fence, ctx.agent_id))
        async with ctx.lock(f"job:{number}", ttl="2s", timeout="5m"):
            await asyncio.sleep(3 * random.random())
            return {"fence": ctx.fence, "state": "accepted"}

    @taker.on_handoff
    async def decide(offer: HandoffOffer) -> bool | None:
        await asyncio.sleep(2 * random.random())
        return None if random.random() < 0.7 else False

    return [asker, taker]


def job(number: int) -> Workflow:
    flow = Workflow(f"job-{number}")
    flow.task("job.begin", number, name="job", retry=Retry(max_attempts=30, first="1s", cap="2s"))
    return flow


async def trouble(fleet: TestFleet, random: Random) -> None:
    """Processes die, stand still and lose their connections for a while."""
    for _ in range(8):
        await asyncio.sleep(2 * random.random())
        victim = random.choice(("asker", "taker", "taker", PLANE))
        match random.choice(("kill", "kill", "pause", "drop")):
            case "kill" if victim != PLANE:  # the store in memory would go with it
                await fleet.restart(victim)
            case "pause":
                fleet.pause(victim)
                await asyncio.sleep(6 * random.random())
                fleet.resume(victim)
            case _:
                fleet.drop_connections(victim)


@pytest.mark.parametrize("seed", range(4))
async def test_each_task_has_one_result_and_each_fence_one_owner(seed: int) -> None:
    random, begun = Random(seed), list[tuple[str, int, str]]()
    async with TestFleet(agents=cast(random, begun), seed=seed, replicas={"asker": 1, "taker": 2}) as fleet:
        runs = [await fleet.client.start(job(number)) for number in range(TASKS)]
        await trouble(fleet, random)
        ends = [await run.wait(timeout="1h") for run in runs]
        values = [await run.result(dict) for run in runs]
        rows = [row async for row in fleet.client.handoffs.list()]
        attempts = {f"{run.id}:job": [row async for row in run.attempts()] for run in runs}
        fleet.forgive_crashes()

    owners = defaultdict[tuple[str, int], set[str]](set)
    for task, fence, agent in begun:
        owners[task, fence].add(agent)
    assert ends == [WorkflowState.COMPLETED] * TASKS
    assert [key for key, agents in owners.items() if len(agents) > 1] == []
    assert rows
    assert not any(row.state == "requested" for row in rows)
    for value, (task, history) in zip(values, attempts.items(), strict=True):
        fences = [one.fence for one in history]
        assert fences == sorted(set(fences))
        assert [one.status for one in history].count("completed") == 1
        assert history[-1].status == "completed"
        assert value["fence"] <= fences[-1]  # an execution that was granted again keeps the fence that it began with
        accepted = [row for row in rows if row.task == task and row.state == "accepted"]
        assert [one.fence for one in history if one.status == "handed_off"] == [row.fence for row in accepted]
