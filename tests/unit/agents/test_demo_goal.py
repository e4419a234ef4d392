"""The demo's goal: its template, the stand-in for a model, and what is said of its end."""

from __future__ import annotations

import json
from pathlib import Path

from agents.demo.goal import GOAL, KINDS, MIN_KINDS, PYTHON, TEMPLATES, GoalReached, describe_goal, goal_model, kind_of
from agents.reviewer import reviewer
from coditect.chat.endpoint import open_chat
from coditect.chat.port import ChatBudget, ChatMessage, ChatRequest, ChatRole
from coditect.goals.plan import PlanBounds
from coditect.goals.planners import TemplatePlanner, read_templates
from coditect.integrations.commands.loading import load_commands
from coditect.integrations.markdown import read_folder
from coditect.model.capability import CapabilitySpec
from coditect.settings.settings import ChatSettings
from coditect.workflow.rows import NodeRow
from tests.servers import ROOT

GIVEN = {"date": "2026-11-25T10:00:00", "changes": "feat: a.\n\nfix: b.\n", "files_reviewed": 3, "remarks": 1}


def node(name: str, agent: str) -> NodeRow:
    return NodeRow.read({"name": name, "state": "completed", "kind": "task", "agent": agent})


async def test_the_goal_is_planned_over_agents_of_four_kinds(tmp_path: Path) -> None:
    commands = load_commands(str(ROOT / "agents" / "git.yaml"), folder=str(tmp_path))
    specs = [one.spec for agent in (reviewer, commands) for one in agent.capabilities]
    specs += [CapabilitySpec(f"writers.{one.name}") for one in read_folder(ROOT / "agents" / "writers")]
    offers = {one.name: one for one in [*specs, CapabilitySpec("clock.get_current_time")]}
    bounds = PlanBounds(offers, lambda spec, value: None)

    plan = await TemplatePlanner(read_templates((ROOT / TEMPLATES).read_bytes())).plan(GOAL, bounds)

    of = {one.title.partition(".")[0] for one in plan.nodes}
    assert of == {"code", *KINDS}
    assert len({*KINDS.values(), PYTHON}) == MIN_KINDS


async def test_the_stand_in_asks_for_a_summary_and_writes_notes_of_it() -> None:
    asked = [ChatMessage(ChatRole.SYSTEM, "Write"), ChatMessage(ChatRole.USER, json.dumps(GIVEN))]
    async with goal_model() as url, open_chat(ChatSettings(url=url, model="stand-in")) as model:
        budget = ChatBudget(10_000)
        first = await model.ask(ChatRequest(tuple(asked)), budget)
        (call,) = first.tool_calls
        told = ChatMessage(ChatRole.TOOL, json.dumps({"sentences": ["feat: a."]}), answers=call.id)
        second = await model.ask(ChatRequest((*asked, told)), budget)

    assert (call.name, json.loads(call.arguments)["text"]) == ("text_summarize", GIVEN["changes"])
    assert second.text == "Release notes of 2026-11-25\n* feat: a.\n3 files reviewed, 1 remarks."


def test_a_goal_says_who_did_it_and_what_it_missed() -> None:
    nodes = [node("changes", "git-1a2b"), node("review", "reviewer-3c4d")]
    reached = GoalReached(nodes, "Release notes\n* one")

    assert [kind_of(one) for one in nodes] == ["a command", "Python"]
    assert reached.shortfall == "only 2 kinds of agents did the goal, not 4"
    assert GoalReached(trouble="no plan").shortfall == "the goal was not reached: no plan"
    assert list(describe_goal(reached))[-2:] == ["  | Release notes", "  | * one"]
    assert list(describe_goal(GoalReached(trouble="no plan"))) == []
