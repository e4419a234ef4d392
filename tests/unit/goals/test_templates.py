"""Goals without a model: templates by words, matched to what agents offer, and the next one after a failure."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from coditect import Agent, Retry
from coditect.errors import InputError, NotFound
from coditect.goals.plan import PlanBounds
from coditect.goals.planners import TemplatePlanner, read_templates
from coditect.model.capability import CapabilitySpec
from coditect.operations.goals import GoalOrder, pursue_goal
from coditect.testing import TestFleet
from coditect.workflow.definition import Definition
from tests.api import services_of

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


class Once:
    """A planner that makes one plan."""

    def __init__(self) -> None:
        self.asked = 0

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        self.asked += 1
        return await TemplatePlanner(read_templates(GOALS)).plan(goal, bounds, failures)


async def test_a_goal_with_a_key_goes_on_with_its_workflows_and_makes_no_plan_twice() -> None:
    started, planner = list[str](), Once()

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
        order, planner = GoalOrder("count it", wait="10m", key="it"), Once()

        async def one() -> str:
            return (await pursue_goal(services.opened, order, planner, anything, planned=lambda *_: None)).workflow

        workflows = await asyncio.gather(one(), one())

    assert planner.asked == 2, "both found nothing yet"
    assert len(set(workflows)) == 1
