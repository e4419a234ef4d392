"""The deployer on a real git repository and a real service: versions, links, probes, and what a branch changes."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from agents.demo.deployment import BROKEN, FLOW, GOOD, POLICY, Deployment, make_shop
from agents.demo.flow import Flow
from agents.deployer import (
    ChangeRequest,
    CommitRequest,
    Deployed,
    DeployRequest,
    Rollback,
    deployer,
    read_change,
    release,
    roll_back,
    scan_change,
)
from agents.deployment import repository as repository_module
from agents.deployment.repository import commit_of, worktree
from agents.deployment.service import Service
from agents.deployment.targets import FolderTarget
from agents.reviewer import Review, reviewer
from agents.tester import tester
from agents.tools.review import Finding, Severity
from coditect import PlainContext
from coditect.errors import InputError, TaskCanceled, TaskFailed
from coditect.testing import TestFleet
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.render import draw_mermaid
from coditect.workflow.states import WorkflowState
from tests.servers import ROOT

Shop = tuple[Path, Service]
TREES = 8
COMMIT = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--allow-empty", "--message")
SHELL = Finding(file="a.py", line=1, severity=Severity.ERROR, rule="S602", message="shell")
STYLE = Finding(file="a.py", line=1, severity=Severity.WARNING, rule="SIM102", message="nested")


class Plain:
    """A context of a plain handler: its task's id, a lock, and one answer to requests."""

    def __init__(self, task_id: str, answer: object = None) -> None:
        self.task_id, self.answer = task_id, answer

    def lock(self, name: str) -> nullcontext[None]:
        return nullcontext()

    def request(self, *_: Any, **__: Any) -> object:
        return self.answer

    def emit(self, *_: Any, **__: Any) -> None:
        """Nobody listens."""


def ctx(task_id: str, answer: object = None) -> PlainContext:
    return cast(PlainContext, Plain(task_id, answer))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    repository, folder = make_shop(tmp_path / "shop")
    yield repository, Service(folder)
    Service(folder).stop()


def asked(shop: Shop, branch: str = GOOD) -> DeployRequest:
    """The release of a branch."""
    repository, service = shop
    return DeployRequest(repository=str(repository), commit=commit_of(repository, branch), service=str(service.folder))


def test_a_release_is_switched_to_and_probed_and_one_that_breaks_is_rolled_back(shop: Shop) -> None:
    repository, service = shop
    first = commit_of(repository, "main")
    good, broken = asked(shop), asked(shop, BROKEN)

    done = release(good, ctx("w:1"))
    again = release(good, ctx("w:1"))
    health = service.probe(good.commit, within_seconds=20)
    bad = release(broken, ctx("w:2"))
    with pytest.raises(TaskFailed, match="SHOP_CURRENCY"):
        service.probe(broken.commit, within_seconds=20)
    undone = roll_back(Rollback(input=broken, result=bad), ctx("w:3"))
    late = roll_back(
        Rollback(input=broken, result=done.model_copy(update={"version": "x", "previous": "y"})), ctx("w:4")
    )

    assert (done, again.previous) == (again, first)
    assert health == {"version": good.commit, "total": 45}
    assert (undone.version, late.version, service.version) == (good.commit,) * 3
    assert service.probe(good.commit, within_seconds=20)["total"] == 45


def test_a_release_that_cannot_start_leaves_the_version_before(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    service = shop[1]
    first, start = service.version or "", Service._start

    def started(one: Service, version: str, lock: int) -> None:
        if version != first:
            raise OSError("no memory is left")
        start(one, version, lock)

    monkeypatch.setattr(Service, "_start", started)
    with pytest.raises(OSError, match="no memory"):
        release(asked(shop), ctx("w:1"))

    assert service.probe(first, within_seconds=20)["version"] == first


async def test_a_canceled_release_leaves_the_version_before(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, service = shop
    first, switch = service.version or "", FolderTarget.release
    begun, go_on = threading.Event(), threading.Event()

    def released(target: FolderTarget, *given: Any) -> str | None:
        begun.set()
        assert go_on.wait(30)
        return switch(target, *given)

    monkeypatch.setattr(FolderTarget, "release", released)
    monkeypatch.setenv("CODITECT_FLEET_ROOT", str(repository.parent))
    async with TestFleet(agents=[deployer], stuck_after="1m") as fleet:  # no virtual time passes beside the release
        try:
            releasing = await fleet.client.submit("service.release", asked(shop), durable=True)
            assert await asyncio.to_thread(begun.wait, 30)
            await releasing.cancel()
            with pytest.raises(TaskCanceled):
                await releasing.result()
        finally:
            go_on.set()
            async with fleet.client.lock(FolderTarget(service).name, timeout="30s"):
                pass  # the release has ended
    assert service.version == first
    assert service.probe(first, within_seconds=20)["version"] == first


def test_worktrees_are_fresh_made_beside_each_other_and_gone_afterwards(shop: Shop) -> None:
    repository, _ = shop

    with worktree(repository, commit_of(repository, "main"), "one") as tree:
        (tree / "left.txt").write_text("by an attempt that was killed")
        with worktree(repository, commit_of(repository, GOOD), "one") as second:
            found = sorted(path.name for path in second.iterdir())

    assert found == [".git", "app.py", "prices.py", "test_prices.py"]
    assert not tree.exists()

    commit = commit_of(repository, "main")

    def check_out(name: str) -> int:
        for number in range(TREES):
            with worktree(repository, commit, f"{name}-{number}") as made:
                assert (made / "app.py").exists()
        return TREES

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(check_out, "ab")) == 2 * TREES


def test_a_change_is_the_diff_since_the_branch_s_base_up_to_a_size(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, _ = shop
    change = read_change(ChangeRequest(repository=str(repository), branch=GOOD))

    assert change.lines == 4
    assert "sum(prices) * 0.9" in change.diff
    for branch in ("none", "--upload-pack=id", "main"):
        with pytest.raises(InputError):
            read_change(ChangeRequest(repository=str(repository), branch=branch))

    monkeypatch.setattr(repository_module, "MOST_DIFF_BYTES", 50)

    with pytest.raises(InputError, match="no diff to review"):
        read_change(ChangeRequest(repository=str(shop[0]), branch=GOOD))


def test_a_scan_keeps_what_is_about_security_with_names_below_the_repository(shop: Shop) -> None:
    repository, _ = shop
    request = CommitRequest(repository=str(repository), commit=commit_of(repository, "main"))
    tree = repository.with_name("repository.worktrees") / "scan-w-1"
    found = [SHELL.model_copy(update={"file": f"{tree}/a.py"}), STYLE]
    review = Review(findings=found, counts={}, files=1)

    assert scan_change(request, ctx("w:1", review)).findings == [SHELL]
    others = [STYLE, SHELL.model_copy(update={"rule": "S110"})]
    assert scan_change(request, ctx("w:1", review.model_copy(update={"findings": others}))).clean


def test_the_workflow_fits_the_agents_and_its_picture_is_the_present_one() -> None:
    known = {one.name for agent in (deployer, reviewer, tester) for one in agent.capabilities}
    flow = load_workflow(ROOT / FLOW, capabilities=known)

    assert draw_mermaid(flow).strip() in (ROOT / "docs" / "pr-deployment.md").read_text()
    assert (ROOT / POLICY).exists()


def test_only_a_roll_back_with_a_reason_counts() -> None:
    flow = Flow(load_workflow(ROOT / FLOW), WorkflowState.COMPENSATED, [])
    done = Deployment(flow, "KeyError", "a", "a")

    assert done.rolled_back
    assert not done.released
    assert not replace(done, why="").rolled_back
    assert not replace(done, after="b").rolled_back


def test_a_release_whose_note_was_cut_off_knows_what_was_before(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first, good = commit_of(shop[0], "main"), asked(shop)
    with monkeypatch.context() as killed:
        killed.setattr(Path, "write_text", _die_amid)
        with pytest.raises(KeyboardInterrupt):
            release(good, ctx("w:1"))

    assert release(good, ctx("w:1")).previous == first


def _die_amid(path: Path, *_: Any, **__: Any) -> int:
    path.write_bytes(b"")  # the file is there, and what was to be in it is not
    raise KeyboardInterrupt


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", '{"pid": "x", "started": 1}'])
def test_a_service_whose_process_file_is_damaged_has_no_process(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "process.json").write_text(damaged)
    service = Service(tmp_path)

    assert service.process() is None
    service.stop()


def test_a_rollback_to_what_is_no_version_is_refused_and_leaves_the_service(shop: Shop) -> None:
    repository, service = shop
    first = commit_of(repository, "main")
    outside = service.folder.parent / "outside"
    outside.mkdir()
    (outside / "app.py").write_text("open('started', 'w')")
    for previous in ("../../outside", "", ".", "/tmp", "a" * 39):
        done = Deployed(version=service.version or "", previous=previous)
        with pytest.raises(InputError, match="no version"):
            roll_back(Rollback(input=asked(shop, "main"), result=done), ctx("w:1"))

        assert service.version == first
    assert not (outside / "started").exists()


def test_links_of_a_branch_stay_links_in_its_release(shop: Shop, tmp_path: Path) -> None:
    _, service = shop
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "around").symlink_to(".")
    (tree / "secret").symlink_to("/etc/hostname")
    version = "f" * 40

    service.install(version, tree)

    links = {path.name: path.is_symlink() for path in service.release_folder(version).iterdir()}
    assert links == {"around": True, "secret": True}


@pytest.mark.parametrize("attributes", ["", "*.py -diff\n", "*.py binary\n", "*.py diff=none\n"])
def test_a_change_hides_no_line_from_the_review_and_the_policy(shop: Shop, attributes: str) -> None:
    repository, _ = shop
    run = partial(subprocess.run, cwd=repository, check=True, capture_output=True)
    run(["git", "config", "diff.none.textconv", "true"])  # a program that prints nothing
    (repository / ".gitattributes").write_text(attributes)
    run(["git", "add", "--all"])
    run([*COMMIT, "attributes"])
    run(["git", "switch", "--quiet", "--create", "hidden"])
    (repository / "prices.py").write_text("".join(f"++x[{number}]\n" for number in range(300)))
    run(["git", "add", "--all"])
    run([*COMMIT, "hidden"])
    run(["git", "switch", "--quiet", "main"])
    change = read_change(ChangeRequest(repository=str(repository), branch="hidden"))

    assert "+++x[299]" in change.diff
    assert change.lines == 300 + 6
