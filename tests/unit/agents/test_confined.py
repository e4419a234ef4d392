"""Requests reach nothing outside the fleet's folder, whatever path they name."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.documenter import DocsRequest, generate
from agents.publisher import ReleaseRequest, publish
from agents.reviewer import PackagesRequest, ReviewRequest, packages, review
from agents.tester import TestsRequest, run_tests, tester
from agents.tools.sources import confined
from coditect import Context
from coditect.errors import InputError

PARTS = st.sampled_from(["..", ".", "inside", "out", "link", "/", "etc", "~"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fleet's folder, with a link that leads out of it."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "inside").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    monkeypatch.setenv("CODITECT_FLEET_ROOT", str(root))
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize("path", ["..", "/etc", "link", "inside/../../outside", "link/../outside/new"])
async def test_capabilities_that_take_paths_refuse_those_outside(path: str, folder: Path, ctx: Context) -> None:
    before = sorted(folder.parent.rglob("*"))

    with pytest.raises(InputError, match="leads out"):
        publish(ReleaseRequest(folder=path, name="v1", pages=[]), ctx)
    with pytest.raises(InputError, match="leads out"):
        await run_tests(TestsRequest(root=path), ctx)
    with pytest.raises(InputError, match="leads out"):
        await review(ReviewRequest(path=path), ctx)
    with pytest.raises(InputError, match="leads out"):
        packages(PackagesRequest(roots=["inside", path]))
    with pytest.raises(InputError, match="leads out"):
        await generate(DocsRequest(path=path), ctx)

    assert sorted(folder.parent.rglob("*")) == before


def test_what_lies_inside_is_done(folder: Path, ctx: Context) -> None:
    publish(ReleaseRequest(folder="inside/releases", name="v1", pages=[]), ctx)

    assert (folder / "inside" / "releases" / "v1" / "release.json").is_file()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(PARTS, min_size=1, max_size=8))
def test_no_path_leads_out(parts: list[str], folder: Path) -> None:
    path = "/".join(parts)
    try:
        given = confined(path)
    except InputError:
        return
    assert Path(os.path.realpath(given)).is_relative_to(os.path.realpath(folder))


def test_up_starts_nothing_that_executes_code_unless_it_is_named() -> None:
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"

    fleet = tomllib.loads(project.read_text())["tool"]["coditect"]["fleet"]

    assert "agents/tester.py" not in fleet
    assert "agents/publisher.py" in fleet
    assert next(one.spec for one in tester.capabilities).description.startswith("Executes code")
