"""A context for handlers that are called as the plain functions they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from coditect import Context

Answers = dict[str, Callable[[Any], object]]


class FakeContext:
    """Remembers progress, and answers requests from a table of capabilities."""

    def __init__(self, workspace: Path) -> None:
        self.task_id = "task-1"
        self.agent_id = "agent-1"
        self.attempt = 2
        self.workspace = workspace
        self.notes: list[str] = []
        self.answers: Answers = {}

    async def progress(self, share: float, note: str = "") -> None:
        assert 0 <= share <= 1
        self.notes.append(note)

    async def request(self, capability: str, asked: Any, *_: object, timeout: str = "30s") -> object:
        return self.answers[capability](asked)

    @property
    def as_context(self) -> Context:
        return cast(Context, self)


@pytest.fixture(autouse=True)
def fleet_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of these tests may name any path."""
    monkeypatch.setenv("CODITECT_FLEET_ROOT", "/")


@pytest.fixture
def fake(tmp_path: Path) -> FakeContext:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return FakeContext(workspace)


@pytest.fixture
def ctx(fake: FakeContext) -> Context:
    return fake.as_context


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def answers(fake: FakeContext) -> Answers:
    """What other agents say: a function per capability."""
    return fake.answers
