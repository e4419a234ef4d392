"""The capability `goal.pursue`: it plans again, goes on after a fault, and is bounded within itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from coditect import Agent, Client, Retry
from coditect.broker.memory import MemoryBroker
from coditect.errors import InputError, TaskError
from coditect.goals.plan import GOAL, MAX_GOAL_DEPTH, MOST_PLANS, GoalRequest, GoalShare, PlanBounds
from coditect.goals.pursuit import GOAL_SLOTS, GoalMeans, TaskRuns, goal_agent
from coditect.integrations.goals import check_input
from coditect.model.capability import CapabilitySpec
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.workflow.definition import Definition
from coditect.workflow.states import WorkflowState

WORDS = {"nodes": {"words": {"task": "text.words", "input": {"$from": "input.goal"}}}}
BROKEN = {"nodes": {"broken": {"task": "text.broken", "input": {"$from": "input.goal"}}}}
GATED = {"nodes": {"words": {"task": "text.gated", "input": {"$from": "input.goal"}}}}
INNER = {"nodes": {"again": {"task": GOAL, "input": {"goal": {"$from": "input.goal"}}}}}


class Nested:
    """A planner that plans each goal as a goal within it, down to the greatest depth, and counts words there."""

    deepest: Any = WORDS

    def of(self, tokens: int) -> Nested:
        return self

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        return bounds.accept(INNER if bounds.share.depth < MAX_GOAL_DEPTH else self.deepest)


class Plans:
    """A planner whose answers to a goal are set, and that counts how often it is asked."""

    def __init__(self, *plans: Any) -> None:
        self.plans: Sequence[Any] = plans
        self.asked = 0
        self.tokens: list[int] = []
        self.shares: list[GoalShare] = []
        self.lessons: dict[str, list[str]] = {}

    def of(self, tokens: int) -> Plans:
        self.tokens.append(tokens)
        return self

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        self.asked += 1
        self.shares.append(bounds.share)
        self.lessons = {name: [one.why for one in found] for name, found in bounds.lessons.items()}
        return bounds.accept(self.plans[min(len(failures), len(self.plans) - 1)])


class Texts:
    """An agent for the plans."""

    def __init__(self) -> None:
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.agent = Agent("texts")
        self.agent.capability("text.words")(self.words)
        self.agent.capability("text.broken", retry=Retry(max_attempts=1))(self.broken)
        self.agent.capability("text.gated")(self.gated)

    async def words(self, text: str) -> int:
        return len(text.split())

    async def broken(self, text: str) -> int:
        raise ValueError("it is broken")

    async def gated(self, text: str) -> int:
        self.begun.set()
        await self.gate.wait()
        return len(text.split())


@asynccontextmanager
async def pursuing(
    plans: Plans | Nested,
    *,
    texts: Texts | None = None,
    allowed: Sequence[str] = ("*",),
    slots: int = GOAL_SLOTS,
    settings: Settings | None = None,
) -> AsyncIterator[TestFleet]:
    async with TestFleet(agents=[(texts or Texts()).agent], settings=settings) as fleet:

        @asynccontextmanager
        async def means() -> AsyncIterator[GoalMeans]:
            async with MemoryBroker(fleet.server, name="goals") as broker, Client(broker, fleet.registry) as client:
                yield GoalMeans(client, plans.of)

        await fleet.add(goal_agent(means, check_input, allowed=tuple(allowed), slots=slots))
        yield fleet


async def pursue(plans: Plans, goal: str = "count these words", **fields: Any) -> Any:
    async with pursuing(plans) as fleet:
        handle = await fleet.client.submit(GOAL, {"goal": goal, **fields}, durable=True)
        return await handle.result(timeout="1h")


async def test_a_goal_is_planned_again_when_its_plan_fails_for_good() -> None:
    plans = Plans(BROKEN, WORDS)

    answer = await pursue(plans)

    assert (answer["value"], len(answer["failures"])) == (3, 1)
    assert "it is broken" in answer["failures"][0]


async def test_a_planner_gets_what_earlier_plans_taught() -> None:
    plans = Plans(BROKEN, WORDS)
    async with pursuing(plans) as fleet:
        for _ in range(2):
            handle = await fleet.client.submit(GOAL, {"goal": "count these words"}, durable=True)
            await handle.result(timeout="1h")
            await fleet.advance("10s")

    assert plans.lessons["text.broken"] == ["it is broken"]


async def test_a_goal_is_given_up_after_a_bounded_number_of_plans() -> None:
    plans = Plans(BROKEN)

    with pytest.raises(TaskError, match="it is broken"):
        await pursue(plans)

    assert plans.asked >= MOST_PLANS


async def test_an_agent_that_dies_amid_a_goal_goes_on_with_the_same_workflow() -> None:
    plans, texts = Plans(GATED), Texts()
    async with pursuing(plans, texts=texts) as fleet:
        handle = await fleet.client.submit(GOAL, {"goal": "count these words"}, durable=True)
        await texts.begun.wait()
        await fleet.restart("goals")
        texts.gate.set()
        answer = await handle.result(timeout="1h")
        runs = [row async for row in fleet.client.workflows.list(name="goal")]

    assert answer["value"] == 3
    assert [row.workflow for row in runs] == [answer["workflow"]]
    assert plans.asked == 1


async def test_a_goal_within_a_goal_has_a_part_of_its_share_and_ends_at_the_greatest_depth() -> None:
    plans = Plans(INNER)

    with pytest.raises(TaskError, match="may not use this capability"):
        await pursue(plans, capabilities=["goal.*", "text.*"])

    assert {share.depth for share in plans.shares} == set(range(MAX_GOAL_DEPTH + 1))
    assert all(("goal.*", "text.*") in share.patterns for share in plans.shares)
    by_depth = {share.depth: share for share in plans.shares}
    assert by_depth[0].attempts > by_depth[1].attempts > by_depth[2].attempts
    assert by_depth[0].tokens > by_depth[1].tokens > by_depth[2].tokens
    assert set(plans.tokens) == {share.tokens for share in plans.shares}


async def test_a_plan_cannot_use_what_the_agent_or_the_request_may_not() -> None:
    async with pursuing(Plans(WORDS), allowed=["goal.*"]) as fleet:
        handle = await fleet.client.submit(GOAL, {"goal": "count"}, durable=True)
        with pytest.raises(TaskError, match="may not use this capability"):
            await handle.result(timeout="1h")
    with pytest.raises(TaskError, match="may not use this capability"):
        await pursue(Plans(WORDS), capabilities=["goal.*"])


async def results(fleet: TestFleet, goals: int) -> list[Any]:
    handles = [await fleet.client.submit(GOAL, {"goal": "count these words"}, durable=True) for _ in range(goals)]
    return [(await handle.result(timeout="5m"))["value"] for handle in handles]


@pytest.mark.parametrize("settings", [None, Settings(max_suspended=1)], ids=["all may wait", "one may wait"])
async def test_goals_that_wait_for_inner_goals_leave_them_the_slots(settings: Settings | None) -> None:
    async with pursuing(Nested(), slots=1, settings=settings) as fleet:
        answers = await results(fleet, 4)

    assert [one["value"]["value"] for one in answers] == [3] * 4


async def plan_of(fleet: TestFleet) -> str:
    [row] = [row async for row in fleet.client.workflows.list(name="goal")]
    return row.workflow


async def test_a_canceled_goal_cancels_its_workflow_and_those_of_the_goals_within_it() -> None:
    plans, texts = Nested(), Texts()
    texts.agent.capability("text.hold")(texts.gated)
    async with pursuing(plans, texts=texts) as fleet:
        plans.deepest = {"nodes": {"words": {"task": "text.hold", "input": "x"}}}
        handle = await fleet.client.submit(GOAL, {"goal": "count these words"}, durable=True)
        await texts.begun.wait()
        await handle.cancel(reason="not needed")
        states = {
            await fleet.client.workflows.get(row.workflow).wait(timeout="1m")
            async for row in fleet.client.workflows.list(name="goal")
        }

    assert states == {WorkflowState.CANCELED}


async def test_a_goals_workflow_outlives_an_agent_that_stops() -> None:
    plans, texts = Plans(GATED), Texts()
    async with pursuing(plans, texts=texts, settings=Settings(drain_seconds=1.0)) as fleet:
        handle = await fleet.client.submit(GOAL, {"goal": "count these words"}, durable=True)
        await texts.begun.wait()
        await fleet.drain("goals")
        state = await fleet.client.workflows.get(await plan_of(fleet)).state()
        await fleet.restart("goals")
        texts.gate.set()
        answer = await handle.result(timeout="1h")

    assert state is WorkflowState.RUNNING
    assert answer["value"] == 3


@dataclass(frozen=True)
class Facts:
    """The facts of a task of the control plane, as its context has them."""

    task_id: str
    requester: str


async def test_an_attempt_that_lost_its_task_to_another_one_cancels_nothing() -> None:
    plans, texts = Plans(GATED), Texts()
    async with pursuing(plans, texts=texts) as fleet:
        handle = await fleet.client.submit(GOAL, {"goal": "count these words"}, durable=True)
        await texts.begun.wait()
        facts: Any = Facts(handle.task_id, f"workflow:{handle.run.id}")
        lost = TaskRuns(fleet.client, facts, lambda plan, workflow: None)
        run = fleet.client.workflows.get(await plan_of(fleet))
        await lost.cancel()
        kept = await run.state()
        fleet.kill("goals")
        await handle.cancel()
        await handle.run.wait(timeout="1m")
        await lost.cancel()

        assert (kept, await run.wait(timeout="1m")) == (WorkflowState.RUNNING, WorkflowState.CANCELED)


SPECS = {name: CapabilitySpec(name) for name in (GOAL, "text.words")}
WIDENED: dict[str, Any] = {
    "a share of its own": {"task": GOAL, "input": {"goal": "x", "within": {"depth": 0}}},
    "capabilities of its own": {"task": GOAL, "input": {"goal": "x", "capabilities": ["*"]}},
    "an input that is computed": {"task": GOAL, "input": {"$from": "input.goal"}},
    "no input": {"task": GOAL},
    "an undoing": {"task": "text.words", "compensate": GOAL},
    "many goals": {"map": GOAL, "over": "input.goal", "limit": 75, "input": {"goal": {"$from": "item"}}},
}


@pytest.mark.parametrize("name", WIDENED)
def test_a_goal_in_a_plan_says_nothing_of_its_own_bounds(name: str) -> None:
    with pytest.raises(InputError):
        PlanBounds(SPECS, lambda spec, value: None).accept({"nodes": {"again": WIDENED[name]}})


def test_a_map_of_goals_shares_what_is_left() -> None:
    node = {"map": GOAL, "over": "input.goal", "limit": 5, "input": {"goal": {"$from": "item"}}}

    plan = PlanBounds(SPECS, lambda spec, value: None).accept({"nodes": {"again": node}})

    within = GoalShare.model_validate(plan.nodes[0].input["within"])
    assert within.attempts * 5 * MOST_PLANS + 5 * 3 <= GoalShare().attempts
    assert within.tokens * 5 * MOST_PLANS <= GoalShare().tokens


def test_a_request_is_bounded_by_the_agent_and_by_the_goals_around_it() -> None:
    share = GoalRequest(goal="x", capabilities=("code.*",)).share(("code.review", "text.*"), 100)

    assert share.tokens == 100
    assert [one for one in ("code.review", "code.fix", "text.sum") if share.allows(one)] == ["code.review"]

    request = GoalRequest(goal="x", capabilities=("a",), within=GoalShare(patterns=(("b",), ("c",)) * 3))

    with pytest.raises(InputError, match="too many lists"):
        GoalRequest(goal="x", capabilities=("a",), within=GoalShare(patterns=tuple((one,) for one in "bcdefg"))).share(
            ("h",), 100
        )
    assert len(request.share(("h",), 100).patterns) == 4


def test_a_plan_for_a_capability_whose_schema_is_none_is_refused() -> None:
    spec = CapabilitySpec("text.words", input_schema={"type": "string", "pattern": "["})

    with pytest.raises(InputError, match="An input does not fit"):
        PlanBounds({"text.words": spec}, check_input).accept({"nodes": {"words": {"task": "text.words", "input": "x"}}})
