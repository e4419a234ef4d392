"""The functions of the tour exist, and a task and a workflow call them in the order of its steps."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import CodeType, FrameType

import pytest

from coditect import Agent, Workflow
from coditect.testing import TestFleet
from tests.docs.pages import section
from tests.servers import ROOT

PAGE = ROOT / "docs" / "tour.md"
_LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./([\w/]+\.py)\)")

Step = tuple[str, str]
"""A function's qualified name, and its file below the root."""


def steps(title: str, limit: int) -> list[Step]:
    """The function of each numbered step, which has one link."""
    text = section(PAGE, title)
    numbered = [step.partition("\n\n")[0] for step in re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]]
    assert 8 <= len(numbered) <= limit, f"{len(numbered)} steps of {title!r}"
    assert all(step.count("](") == 1 for step in numbered), "one link in each step"
    return [(name, file) for step in numbered for name, file in _LINK.findall(step)]


TASK = steps("The life of a direct task", 10)
NODE = steps("The life of a workflow node", 12)


def code_of(step: Step) -> CodeType:
    """The code of a step's function."""
    name, file = step
    code = attrgetter(name)(import_module(file.removesuffix(".py").replace("/", "."))).__code__
    assert isinstance(code, CodeType)
    return code


@contextmanager
def first_calls(wanted: Sequence[Step]) -> Iterator[list[Step]]:
    """Which of these functions were called, in the order of their first calls."""
    known = {id(code_of(step)): step for step in wanted}
    called: list[Step] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (step := known.get(id(frame.f_code))) is not None and step not in called:
            called.append(step)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(before)


@pytest.fixture
def teller() -> Agent:
    agent = Agent("teller")

    @agent.capability("letters.count")
    async def count(word: str) -> int:
        return len(word)

    return agent


@pytest.mark.parametrize("step", [*TASK, *NODE], ids=lambda step: step[0])
def test_a_step_names_a_function_of_its_file(step: Step) -> None:
    code = code_of(step)

    assert (code.co_qualname, Path(code.co_filename).resolve()) == (step[0], ROOT / step[1])


async def test_a_direct_task_calls_the_functions_in_their_order(teller: Agent) -> None:
    async with TestFleet(agents=[teller]) as fleet:
        with first_calls(TASK) as called:
            assert await fleet.request("letters.count", "tour", int) == 4
            await fleet.settled()

    assert called == TASK


async def test_the_nodes_of_a_workflow_call_the_functions_in_their_order(teller: Agent) -> None:
    flow = Workflow("words")
    first = flow.task("letters.count", "a", name="first")
    flow.task("letters.count", "tour", name="second", after=[first])

    async with TestFleet(agents=[teller]) as fleet:
        with first_calls(NODE) as called:
            run = await fleet.start(flow)
            await run.wait()
            assert await run.result(int) == 4

    assert called == NODE
