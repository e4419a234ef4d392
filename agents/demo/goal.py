"""The demo's goal: one sentence, planned by a template, done by agents of four kinds; then the autonomy rate.

Both are commands that a person would type. The kinds are Python, a command, an MCP server, and a markdown agent with a
stand-in for its language model, so that the demo needs no network.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Any

from agents.tools.model_stub import StubAnswer, model_stub
from coditect import Client
from coditect.workflow.rows import NodeRow

GOAL = "Write the release notes of the latest changes"
TEMPLATES = Path("examples") / "goals" / "release_notes.yaml"
KINDS = {"git": "a command", "clock": "an MCP server", "writers": "Markdown, and a stand-in for a language model"}
PYTHON = "Python"
MIN_KINDS = 4
AUTONOMY = """
Autonomy is the share of the ended workflows and nodes that needed no person. Of the two workflows one waited for an
approval, which the demo granted in a person's place: hence 50 %. An approval policy can decide such a question."""
_SECONDS = 120
_SENTENCES = 3


@dataclass(frozen=True, slots=True)
class GoalReached:
    """The result of the demo's goal: the plan's nodes and the text that was written, or why there is none."""

    nodes: Sequence[NodeRow] = ()
    value: str = ""
    trouble: str = ""

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of the agents that did the plan's nodes."""
        return frozenset(kind_of(node) for node in self.nodes)

    @property
    def shortfall(self) -> str:
        """The sentence that says why the goal was not reached, or that too few kinds of agents did it; else empty."""
        if self.trouble:
            return f"the goal was not reached: {self.trouble}"
        few = len(self.kinds) < MIN_KINDS
        return f"only {len(self.kinds)} kinds of agents did the goal, not {MIN_KINDS}" if few else ""


def goal_model() -> AbstractAsyncContextManager[str]:
    """Serve a stand-in for the language model of the demo's markdown agent while the block runs, and yield its URL."""
    return model_stub(write_notes)


def goal_settings(root: Path, model_url: str) -> dict[str, str]:
    """Return the environment variables of the goal's agents: the repository for `git log`, the model stand-in's URL."""
    return {"GIT_DIR": str(root / ".git"), "CODITECT_CHAT_URL": model_url, "CODITECT_CHAT_MODEL": "stand-in"}


def write_notes(messages: Sequence[Mapping[str, Any]]) -> StubAnswer:
    """Answer in place of a model that writes release notes: first ask for a summary of the changes, then write them."""
    task_input, last = json.loads(messages[1]["content"]), messages[-1]
    if last["role"] != "tool":
        return StubAnswer(tool="text_summarize", arguments={"text": task_input["changes"], "sentences": _SENTENCES})
    lines = [f"Release notes of {task_input['date'][:10]}"]
    lines += [f"* {sentence}" for sentence in json.loads(last["content"])["sentences"]]
    return StubAnswer(
        "\n".join([*lines, f"{task_input['files_reviewed']} files reviewed, {task_input['remarks']} remarks."])
    )


def kind_of(node: NodeRow) -> str:
    """Return the kind of the agent that ran a node of the goal's plan, such as `an MCP server`."""
    return KINDS.get((node.agent or "").rpartition("-")[0], PYTHON)


async def pursue_goal(client: Client, environ: Mapping[str, str], root: Path, *, say: Callable[[str], None]) -> str:
    """Run `workflow start --goal` and `approval audit --autonomy`, print their output, and return what was missed."""
    reached = await _reached(client, environ, root, say)
    for line in describe_goal(reached):
        say(line)
    rate, said, failed = await _command(["approval", "audit", "--autonomy"], environ, root, say)
    say(rate.rstrip() or said)
    say(AUTONOMY)
    return reached.shortfall or ("the autonomy rate is not known" if failed else "")


def describe_goal(reached: GoalReached) -> Iterator[str]:
    """Yield lines that show which agent ran each node of the goal's plan, and then the release notes."""
    cells = [(node.name, node.capability, node.agent or "", kind_of(node)) for node in reached.nodes]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    yield from ("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    yield from (f"  | {line}" for line in reached.value.splitlines())


async def _reached(client: Client, environ: Mapping[str, str], root: Path, say: Callable[[str], None]) -> GoalReached:
    arguments = ["workflow", "start", "--goal", GOAL, "--templates", str(TEMPLATES), "--output", "json"]
    out, said, failed = await _command(arguments, environ, root, say)
    say(said.strip())
    if failed:
        return GoalReached(trouble=said.strip().splitlines()[-1] if said.strip() else "no answer")
    answer = json.loads(out)
    nodes = [row async for row in client.workflows.get(answer["workflow"]).nodes()]
    return GoalReached(sorted(nodes, key=lambda row: row.finished_at_ms or 0), str(answer["value"]))


async def _command(
    arguments: Sequence[str], environ: Mapping[str, str], root: Path, say: Callable[[str], None]
) -> tuple[str, str, bool]:
    """Run a `coditect` command for at most two minutes; return its stdout, its stderr, and whether it failed."""
    say(f"\n$ {join(['coditect', *arguments])}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coditect", *arguments, cwd=root, env=dict(environ), stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(_SECONDS):
            out, said = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return out.decode(), said.decode(), process.returncode != 0
