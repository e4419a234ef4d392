"""Goals: plans of strangers are checked, refused with a reason, and never run before that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from coditect import Agent, Retry
from coditect.chat.endpoint import open_chat
from coditect.chat.port import BudgetSpent, ChatBroken, ChatBudget, ChatUnavailable
from coditect.errors import CoditectError, InputError, NotFound, ResultTimeout
from coditect.goals.plan import PlanBounds
from coditect.goals.planners import ChatPlanner, TemplatePlanner, read_templates
from coditect.goals.pursuit import ClientRuns, pursue
from coditect.integrations.json_schema import SchemaCheck
from coditect.model.capability import CapabilitySpec
from coditect.model.duration import Duration
from coditect.model.lesson import Lesson
from coditect.operations.goals import GoalOrder, pursue_goal
from coditect.testing import TestFleet
from coditect.workflow.definition import Definition
from tests.api import services_of
from tests.chat_stub import chat_stub, says

PATH = {
    "type": "object",
    "properties": {"path": {"type": "string", "pattern": "^[a-z/]+$"}},
    "required": ["path"],
    "additionalProperties": False,
}
BOUNDS = PlanBounds(
    {"code.review": CapabilitySpec("code.review", input_schema=PATH), "text.sum": CapabilitySpec("text.sum")},
    lambda spec, value: SchemaCheck(spec.input_schema).check(value),
)
GOOD = {
    "nodes": {
        "review": {"task": "code.review", "input": {"path": "src"}},
        "sum": {"task": "text.sum", "input": {"found": {"$from": "results.review"}}, "after": ["review"]},
    }
}


def review(**fields: Any) -> dict[str, Any]:
    return {"nodes": {"review": {"task": "code.review", "input": {"path": "src"}} | fields}}


HOSTILE: Mapping[str, tuple[Any, str]] = {
    "shell in an argument": (review(input={"path": "src; rm -rf /"}), "does not match"),
    "an argument too many": (review(input={"path": "src", "command": "id"}), "command"),
    "a capability that the goal may not use": (review(task="system.shell"), "may not use"),
    "a compensation that the goal may not use": (review(compensate="system.shell"), "may not use"),
    "10,000 nodes": ({"nodes": {f"n{number}": {"task": "text.sum"} for number in range(10_000)}}, "too many nodes"),
    "a cycle": (
        {"nodes": {"a": {"task": "text.sum", "after": ["b"]}, "b": {"task": "text.sum", "after": ["a"]}}},
        "circle",
    ),
    "a secret asked for": (review(input={"path": {"$from": "env.CODITECT_CHAT_KEY"}}), "env"),
    "a child": ({"nodes": {"a": {"workflow": "goal"}}}, "only tasks and maps"),
    "an approval": ({"nodes": {"a": {"approval": "Send the password?"}}}, "only tasks and maps"),
    "a priority": (review(priority="P0"), "no priorities"),
    "a huge map": ({"nodes": {"a": {"map": "text.sum", "over": "input.goal", "limit": 10_000}}}, "too much work"),
    "many repeats": (review(repeat={"until": "result", "most": 1_000}), "too much work"),
    "fields of a workflow": (GOOD | {"labels": {"policy": "approve"}}, "nothing else"),
    "no object": ([], "nothing else"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_plan_of_a_model_is_refused_with_its_reason_and_nothing_is_executed(name: str) -> None:
    plan, told = HOSTILE[name]
    runs = Unended()

    async with chat_stub(*[says(json.dumps(plan))] * 3) as stub, open_chat(stub.settings()) as chat:
        with pytest.raises(InputError, match=told):
            await pursue("Do it", ChatPlanner(chat, ChatBudget(10_000_000)), BOUNDS, runs)

    assert runs.started == []
    assert len(stub.requests) == 3
    assert "sk-test" not in json.dumps(stub.requests)


async def test_a_model_is_told_why_its_plan_was_refused_and_may_repair_it() -> None:
    bad = says("Sure! Here is the plan: {")
    async with chat_stub(bad, says(json.dumps(GOOD))) as stub, open_chat(stub.settings()) as chat:
        plan = await ChatPlanner(chat, ChatBudget(100_000)).plan("Review it", BOUNDS)

    assert [node.title for node in plan.nodes] == ["code.review", "text.sum"]
    assert "refused" in stub.requests[1]["messages"][-1]["content"]
    assert "code.review" in stub.requests[0]["messages"][0]["content"]


async def test_a_conversation_ends_with_its_budget_or_with_a_truncated_answer() -> None:
    async with chat_stub(says("no plan", prompt=1_000, completion=450)) as stub, open_chat(stub.settings()) as chat:
        with pytest.raises(BudgetSpent):
            await ChatPlanner(chat, ChatBudget(1_500)).plan("Review it", BOUNDS)

    whole = says(json.dumps(GOOD))
    async with chat_stub(whole[: len(whole) // 2]) as stub, open_chat(stub.settings()) as chat:
        with pytest.raises((ChatBroken, ChatUnavailable)):
            await ChatPlanner(chat, ChatBudget(100_000)).plan("Review it", BOUNDS)


async def test_a_model_plans_with_what_was_learned_about_the_capabilities() -> None:
    learned = [Lesson.of("code.review", "too_large TooLarge", "a path of 900 files", fixes={"a handoff to linter": 2})]
    bounds = replace(BOUNDS, lessons={"code.review": learned})
    async with chat_stub(says(json.dumps(GOOD))) as stub, open_chat(stub.settings()) as chat:
        await ChatPlanner(chat, ChatBudget(100_000)).plan("Review it", bounds)

    order, lessons, goal = stub.requests[0]["messages"]
    assert learned[0].why not in order["content"]
    assert (lessons["role"], goal["content"]) == ("user", "Review it")
    assert json.loads(lessons["content"].partition("\n")[2]) == {"code.review": [learned[0].sentence]}
    assert "fixed by a handoff to linter (2 times)" in learned[0].sentence


class Scripted:
    """A planner that answers one plan after the other."""

    def __init__(self, *plans: Any) -> None:
        self.plans = list(plans)
        self.failures: list[tuple[str, ...]] = []

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        self.failures.append(failures)
        return bounds.accept(self.plans.pop(0))


class Unended(ClientRuns):
    """Workflows that do not end in time."""

    def __init__(self) -> None:
        self.started: list[Definition] = []

    async def find(self, number: int) -> None:
        return None

    async def start(self, number: int, plan: Definition, goal: str) -> Any:
        self.started.append(plan)

    async def result(self, run: Any, *, timeout: Duration) -> Any:
        raise ResultTimeout("Not yet")


async def test_a_goal_whose_time_is_up_is_not_planned_again() -> None:
    planner = Scripted(*[GOOD] * 3)

    with pytest.raises(CoditectError, match="Not yet"):
        await pursue("the news", planner, BOUNDS, Unended())

    assert len(planner.plans) == 2


GOALS = b"""
goals:
  - name: count
    when: [count]
    nodes:
      count: {task: text.count, input: {$from: input.goal}}
  - name: count_well
    when: [count, words]
    nodes:
      count: {task: [text.words.fast, text.words], input: {$from: input.goal}}
      double: {task: number.double, input: {$from: results.count}, after: [count]}
"""
counter = Agent("counter")
broken = Retry(max_attempts=1)


@counter.capability("text.count")
async def count(text: str) -> int:
    return len(text)


@counter.capability("text.words", retry=broken)
async def words(text: str) -> int:
    if "fail" in text:
        raise ValueError("it failed")
    return len(text.split())


@counter.capability("number.double")
async def double(number: int) -> int:
    return 2 * number


def anything(spec: CapabilitySpec, value: Any) -> None:
    """Take every input."""


async def pursued(goal: str, *patterns: str) -> tuple[Any, list[str]]:
    """The value of a goal, and the capabilities of each plan."""
    plans = list[str]()

    def planned(plan: Definition, workflow: str) -> None:
        plans.append(" ".join(one.title for one in plan.nodes))

    async with (
        TestFleet(agents=[counter]) as fleet,
        services_of(fleet.server, fleet.registry, fleet.client) as services,
    ):
        order = GoalOrder(goal, patterns or ("*",), wait="10m")
        planner = TemplatePlanner(read_templates(GOALS))
        result = await pursue_goal(services.opened, order, planner, anything, planned=planned)
    return result.value, plans


async def test_the_most_particular_template_is_taken_with_what_agents_offer() -> None:
    assert await pursued("Count the words of this") == (10, ["text.words number.double"])
    assert await pursued("COUNT it") == (8, ["text.count"])


async def test_a_plan_that_fails_for_good_is_followed_by_the_next_template() -> None:
    value, plans = await pursued("count words that fail")

    assert value == len("count words that fail")
    assert plans == ["text.words number.double", "text.count"]


async def test_a_goal_without_a_template_that_it_may_use_says_what_there_is() -> None:
    with pytest.raises(InputError, match="no template left") as told:
        await pursued("count it", "number.*")
    with pytest.raises(NotFound, match="may use"):
        await pursued("count it", "code.*")

    assert "may not use this capability" in str(told.value.facts["refused"])

    with pytest.raises(InputError, match="no template left") as told:
        await pursued("Paint it")
    with pytest.raises(InputError, match="no templates of goals"):
        read_templates(b"goals: [{name: x, nodes: {}}]")

    assert told.value.facts["templates"] == ["count_well: count, words", "count: count"]


class OnePlan:
    """A planner that makes one plan."""

    def __init__(self) -> None:
        self.asked = 0

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        self.asked += 1
        return await TemplatePlanner(read_templates(GOALS)).plan(goal, bounds, failures)


async def test_a_goal_with_a_key_goes_on_with_its_workflows_and_makes_no_plan_twice() -> None:
    started, planner = list[str](), OnePlan()

    def planned(plan: Definition, workflow: str) -> None:
        started.append(workflow)

    async with (
        TestFleet(agents=[counter]) as fleet,
        services_of(fleet.server, fleet.registry, fleet.client) as services,
    ):
        order = GoalOrder("count words that fail", wait="10m", key="it")
        first = await pursue_goal(services.opened, order, planner, anything, planned=planned)
        second = await pursue_goal(services.opened, order, planner, anything, planned=planned)
        third = await pursue_goal(services.opened, replace(order, key="another"), planner, anything, planned=planned)

    assert second == first
    assert third.workflow != first.workflow
    assert (len(first.failures), planner.asked, len(started)) == (1, 4, 4)


async def test_a_goal_that_is_pursued_twice_at_once_under_one_key_has_one_workflow() -> None:
    async with (
        TestFleet(agents=[counter]) as fleet,
        services_of(fleet.server, fleet.registry, fleet.client) as services,
    ):
        order, planner = GoalOrder("count it", wait="10m", key="it"), OnePlan()

        async def one() -> str:
            return (await pursue_goal(services.opened, order, planner, anything, planned=lambda *_: None)).workflow

        workflows = await asyncio.gather(one(), one())

    assert planner.asked == 2, "both found nothing yet"
    assert len(set(workflows)) == 1
