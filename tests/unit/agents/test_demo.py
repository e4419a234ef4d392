"""The demo: its plan, its board, its summary and its goal."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from agents.demo.__main__ import submit_all, write_docs
from agents.demo.board import Board, show
from agents.demo.fleet import demo_folder, explain
from agents.demo.goal import (
    AUTONOMY,
    GOAL,
    KINDS,
    MIN_KINDS,
    PYTHON,
    TEMPLATES,
    GoalReached,
    describe_goal,
    goal_model,
    kind_of,
    pursue_goal,
)
from agents.demo.summary import NEXT, Settled, describe, peak, total
from agents.demo.work import MOST_DOCS, MOST_REVIEWS, MOST_SUMMARIES, TESTS, DemoTask, announce, plan_work
from agents.documenter import Docs
from agents.reviewer import Review, reviewer
from agents.summarizer import Summary, SummaryRequest, summarize
from agents.tester import FailedTest, SuiteOutcome, TestsReport
from agents.tools.review import Finding, Severity
from coditect import Client, Context, Event, Outcome, Priority, Status
from coditect.agent.process import ProcessId
from coditect.chat.endpoint import open_chat
from coditect.chat.port import ChatBudget, ChatMessage, ChatRequest, ChatRole
from coditect.errors import BrokerUnavailable, CoditectError, InputError, ResultTimeout, TaskFailed, UnknownCapability
from coditect.goals.plan import PlanBounds
from coditect.goals.planners import TemplatePlanner, read_templates
from coditect.integrations.commands.loading import load_commands
from coditect.integrations.markdown import read_folder
from coditect.local import Phase, StopReport, UpPlan, UpState
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.settings.settings import ChatSettings
from coditect.wire.json import dumps
from coditect.workflow.rows import NodeRow
from coditect.workflow.states import WorkflowState
from tests.control_plane import node_row
from tests.docs.pages import headings
from tests.servers import ROOT
from tests.unit.cli.scene import Terminal

COMPLETED = WorkflowState.COMPLETED
JOB = DemoTask("text.summarize", "a page", SummaryRequest(text="Words."), Summary, Priority.P1)
SUMMARY = Summary(summary="Words.", sentences=["Words."], keywords=["words", "more"], sentences_read=3)


class FakeHandle:
    """A task that ended, or (ResultTimeout) has no end yet."""

    task_id = "task-7"

    def __init__(self, answer: Summary | Exception) -> None:
        self.answer = answer

    async def outcome(self, *, timeout: str) -> Outcome:
        if isinstance(self.answer, ResultTimeout):
            raise self.answer
        return Outcome(
            Status.COMPLETED, b"", self.task_id, None, AgentId("agent-7"), started_at_ms=10, finished_at_ms=20
        )

    async def result(self, _: type[Summary]) -> Summary:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeClient(Client):
    def __init__(self, answer: Summary | Exception) -> None:
        self.answer = answer

    async def submit(self, *_: object, **__: object) -> FakeHandle:  # type: ignore[override]
        if isinstance(self.answer, UnknownCapability | BrokerUnavailable):
            raise self.answer
        return FakeHandle(self.answer)


def started(task_id: str) -> Event:
    return Event("task.started", "/agents/agent-7", "event-1", 10, task_id)


def many(count: int, *, processes: int = 5) -> list[Settled]:
    done = Settled(JOB, SUMMARY, started_ms=1000, finished_ms=1010)
    return [replace(done, agent_id=f"agent-{number % processes}") for number in range(count)]


def test_plan_covers_every_module_and_mixes_the_priorities(tmp_path: Path) -> None:
    for package in ("coditect", "coditect/model", "tests/unit/model"):
        (tmp_path / package).mkdir(parents=True)
    (tmp_path / "coditect/one.py").write_text(f'"""{"A sentence about it. " * 20}"""\n')
    (tmp_path / "coditect/model/two.py").write_text('"""Short."""\n')
    (tmp_path / "coditect/model/__init__.py").write_text("")
    (tmp_path / "tests/unit/model/test_durations.py").write_text('"""Short."""\n')
    (tmp_path / "README.md").write_text("A sentence about it. " * 20)

    jobs = plan_work(tmp_path)

    assert {(job.capability, job.subject, job.priority) for job in jobs} == {
        ("tests.run", "tests/unit/model/test_durations.py", Priority.P0),
        ("code.review", "coditect/one.py", Priority.P0),
        ("code.review", "coditect/model/two.py", Priority.P1),
        ("code.review", "tests/unit/model/test_durations.py", Priority.P1),
        ("docs.generate", "coditect/one.py", Priority.P2),
        ("docs.generate", "coditect/model/two.py", Priority.P2),
        ("text.summarize", "README.md", Priority.P2),
        ("text.summarize", "coditect/one.py (docstring)", Priority.P2),
    }
    assert announce(jobs) == "8 tasks (2 urgent, 2 normal, 4 bulk)"


def test_readme_says_how_many_tasks_the_demo_does() -> None:
    said = re.findall(r"^make demo .* (\d+) tasks", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert said == [str(len(TESTS) + MOST_REVIEWS + MOST_DOCS + MOST_SUMMARIES)]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [([], 0), ([(1, 2), (2, 3)], 1), ([(1, 4), (2, 3), (3, 5)], 2), ([(5, 5), (5, 5)], 2), ([(1, 9)] * 3, 3)],
)
def test_peak_is_the_most_spans_at_one_instant(spans: list[tuple[int, int]], expected: int) -> None:
    assert peak(spans) == expected


def test_demo_that_reached_all_but_its_workflow_or_goal_says_so() -> None:
    totals = total(many(101), 3.0, workflow=COMPLETED)

    assert totals.shortfalls == []
    assert (totals.completed, totals.processes, totals.at_once) == (101, 5, 101)

    assert total(many(101), 3.0, workflow=WorkflowState.REJECTED).shortfalls == ["the workflow ended as rejected"]
    assert replace(total(many(101), 3.0, workflow=COMPLETED), goal="no goal").shortfalls == ["no goal"]


@pytest.mark.parametrize(
    ("settled", "said"),
    [
        (many(100), "only 100 tasks completed"),
        (many(200, processes=4), "only 4 agent processes"),
        ([*many(200), Settled(JOB, error="gone", lost=True)], "1 tasks were lost"),
        ([*many(200), Settled(JOB, error="broken")], "1 tasks failed"),
        ([replace(one, started_ms=0) for one in many(200)], "only 0 handlers"),
    ],
)
def test_demo_that_fell_short_says_of_what(settled: list[Settled], said: str) -> None:
    totals = total(settled, 3.0, workflow=COMPLETED)

    assert len(totals.shortfalls) == 1
    assert totals.shortfalls[0].startswith(said)


def test_summary_counts_findings_and_tells_the_failed_tests_and_the_errors() -> None:
    finding = Finding(file="a.py", line=3, severity=Severity.ERROR, rule="S602", message="shell")
    review = Review(findings=[finding], counts={Severity.ERROR: 1}, files=1)
    failure = FailedTest(nodeid="t.py::test_a", message="assert 1\nmore")
    report = TestsReport(
        verdict=SuiteOutcome.FAILED, passed=4, failed=1, errors=0, skipped=0, duration_seconds=1, failures=[failure]
    )
    docs = Docs(title="a", markdown="# a", modules=1, objects=4, documented=3)
    settled = [Settled(JOB, value, agent_id="agent-2") for value in (report, docs, SUMMARY)]
    settled.append(Settled(JOB, review, agent_id="agent-1"))
    settled.append(Settled(JOB, error="no agent"))

    text = describe(settled, total(settled, 3.0, workflow=COMPLETED))

    for expected in (
        "4 tasks completed",
        "agent-1 did 1, agent-2 did 3",
        "1 error, 0 warning, 0 info",
        "Tests: 4 passed, 1 failed, 0 skipped, in 1 runs",
        "t.py::test_a: assert 1\n",
        "Docs: 1 pages written, 3 of 4 public names documented",
        "Summaries: 1 texts, 3 sentences read",
        "text.summarize a page: no agent",
        "NOT REACHED: only 4 tasks completed",
    ):
        assert expected in text


async def test_answered_task_is_settled_with_who_did_it_and_when() -> None:
    board = Board()

    settled = await submit_all(FakeClient(SUMMARY), [JOB], board)

    assert settled == [Settled(JOB, SUMMARY, agent_id="agent-7", started_ms=10, finished_ms=20)]
    assert board.rows["text.summarize"]["done"] == 1


@pytest.mark.parametrize(
    ("error", "lost", "agent"),
    [
        (TaskFailed("broken"), False, "agent-7"),
        (ResultTimeout("late"), True, ""),
        (BrokerUnavailable("gone"), True, ""),
        (UnknownCapability("nobody"), False, ""),
    ],
)
async def test_task_without_a_value_is_failed_or_lost(error: Exception, lost: bool, agent: str) -> None:
    board = Board()

    [settled] = await submit_all(FakeClient(error), [JOB], board)

    assert (settled.value, settled.lost, settled.agent_id) == (None, lost, agent)
    assert board.rows["text.summarize"]["failed"] == 1


def test_board_counts_running_tasks_the_agents_that_answered_and_what_agents_ask_of_each_other() -> None:
    board = Board()
    board.heard(started("task-7"))
    board.submitted("task-7", JOB)
    board.heard(started("task-7"))

    while_running = board.rows["text.summarize"]["running"]
    board.settled("task-7", Settled(JOB, SUMMARY))

    assert while_running == 1
    assert board.rows["text.summarize"] == {"submitted": 1, "done": 1}
    assert board.latest == "keywords: words, more"

    answered = Board()

    for task_id, agent_id in (("task-1", "a"), ("task-2", "a"), ("task-3", ""), ("task-4", "b")):
        answered.settled(task_id, Settled(JOB, SUMMARY, agent_id=agent_id))

    assert answered.agents("text.summarize") == 2
    assert answered.agents("code.review") == 0

    asked = Board()
    asked.submitted("task-7", JOB)

    asked.heard(started("task-8"))
    asked.heard(Event("task.completed", "/agents/agent-7", "event-2", 11, "task-9"))

    assert asked.asked == 1
    assert asked.rows["text.summarize"] == {"submitted": 1, "waiting": 1}


@pytest.mark.parametrize("terminal", [True, False])
async def test_board_shows_the_counts_on_a_terminal_and_in_a_pipe(terminal: bool) -> None:
    output = io.StringIO()
    board = Board()

    async with show(board, Console(file=output, force_terminal=terminal, width=120)):
        await submit_all(FakeClient(SUMMARY), [JOB], board)

    assert "submitted" in output.getvalue()
    assert "keywords: words, more" in output.getvalue()


def test_file_that_does_not_parse_is_reviewed_and_not_documented(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/half.py").write_text("def half(\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_one.py").write_text("assert True\n")

    jobs = plan_work(tmp_path)

    assert [(job.capability, job.subject) for job in jobs] == [
        ("code.review", "agents/half.py"),
        ("code.review", "tests/test_one.py"),
    ]


def test_demos_at_the_same_time_have_folders_of_their_own(tmp_path: Path) -> None:
    with demo_folder(tmp_path) as first:
        (first / "rabbitmq" / "data").mkdir(parents=True)
        with demo_folder(tmp_path) as second:
            assert (first / "rabbitmq" / "data").exists()
    with demo_folder(tmp_path) as again:
        left = list(again.glob("rabbitmq/*"))

    assert [folder.name for folder in (first, second, again)] == ["demo", "demo-2", "demo"]
    assert left == []


def test_documents_are_written_under_the_name_of_their_module(tmp_path: Path) -> None:
    docs = Docs(title="pkg.module", markdown="# pkg.module\n", modules=1, objects=1, documented=1)

    write_docs([Settled(JOB, docs), Settled(JOB, SUMMARY)], tmp_path / "docs")

    assert [page.name for page in (tmp_path / "docs").iterdir()] == ["pkg.module.md"]


def test_what_the_demo_says_to_try_next_works_in_this_repository(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[UpPlan] = []

    def up(plan: UpPlan, **_: object) -> UpState:
        plans.append(plan)
        return UpState("mark", Phase.READY, ProcessId(1, "now"), "amqp://here/", "redis://here/0")

    def end(task_id: str) -> Outcome:
        asked = SummaryRequest.model_validate_json(terminal.connections.scripted.orders[-1].value)
        return Outcome(Status.COMPLETED, dumps(summarize(asked, ctx).model_dump()), task_id, task_id)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("coditect.local.up_detached", up)
    monkeypatch.setattr("coditect.local.down", lambda _: StopReport(was_up=True))
    terminal = Terminal()
    terminal.connections.scripted.end = end
    named = re.findall(r"^  coditect (.+?)(?:   .*)?$", NEXT, re.MULTILINE) + re.findall(r"`coditect (.+?)`", NEXT)

    codes = {" ".join(words[:2]): terminal.run(*words).code for words in map(shlex.split, named)}

    assert codes == {"up --detach": 0, "agent list": 0, "task submit": 0, "down": 0}
    assert any("agents/summarizer.py" in program.argv for program in plans[0].programs)
    assert re.findall(r'README\.md, "(.+)":', NEXT)[0] in headings(ROOT / "README.md")


def test_every_error_of_nested_groups_is_explained_on_its_own_line() -> None:
    late, unknown = ResultTimeout("No result yet", fix="wait longer"), InputError("No such file", file="a.py")
    text = ""

    try:
        raise ExceptionGroup("the demo", [ExceptionGroup("a task group", [late]), unknown])
    except* CoditectError as errors:
        text = explain(errors, title="The demo could not run")

    assert text.splitlines() == [f"The demo could not run: {error}" for error in (late, unknown)]
    assert "wait longer" in text


GIVEN = {"date": "2026-11-25T10:00:00", "changes": "feat: a.\n\nfix: b.\n", "files_reviewed": 3, "remarks": 1}


def node(name: str, agent: str) -> NodeRow:
    return node_row(name, "completed", agent=agent)


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


async def test_the_demo_explains_its_autonomy_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def command(arguments: list[str], *_: object) -> tuple[str, str, bool]:
        return ("all workflows  50.0%", "", False) if "--autonomy" in arguments else ("", "no plan", True)

    monkeypatch.setattr("agents.demo.goal._command", command)
    missed = await pursue_goal(FakeClient(SUMMARY), {}, ROOT, say=said.append)

    assert missed == "the goal was not reached: no plan"
    assert said[-2:] == ["all workflows  50.0%", AUTONOMY]
    assert re.search(r"Autonomy is the share .* needed no person\.", AUTONOMY)
