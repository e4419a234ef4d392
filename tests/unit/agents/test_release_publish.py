from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.publisher import MANIFEST, Page, Release, ReleaseRequest, publish
from coditect import Context
from coditect.errors import InputError
from tests.unit.agents.conftest import FakeContext

PAGES = [Page(name="model.md", text="# Model\nünïcödé\r\n"), Page(name="agent.md", text="")]


@pytest.fixture
def request_(tmp_path: Path) -> ReleaseRequest:
    return ReleaseRequest(folder=str(tmp_path / "releases"), name="1.0", pages=PAGES, facts={"tests_passed": 7})


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_same_task_publishes_once_and_another_never(request_: ReleaseRequest, ctx: Context, fake: FakeContext) -> None:
    release, folder = publish(request_, ctx), Path(request_.folder)

    assert listing(folder) == {"1.0", "1.0/model.md", "1.0/agent.md", f"1.0/{MANIFEST}"}
    written = (folder / "1.0" / "model.md").read_bytes()
    assert written.decode() == PAGES[0].text
    assert release.files["model.md"] == hashlib.sha256(written).hexdigest()
    assert json.loads((folder / "1.0" / MANIFEST).read_text()) == release.model_dump()
    assert (release.task_id, release.facts) == (ctx.task_id, {"tests_passed": 7})

    before = (folder / "1.0" / MANIFEST).stat()
    assert publish(request_, ctx) == release
    after = (folder / "1.0" / MANIFEST).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    fake.task_id = "task-2"
    with pytest.raises(InputError, match="task-1") as caught:
        publish(request_, ctx)

    assert not caught.value.retryable
    assert listing(folder) == {"1.0", "1.0/model.md", "1.0/agent.md", f"1.0/{MANIFEST}"}


def test_executions_side_by_side_leave_one_release(request_: ReleaseRequest, ctx: Context) -> None:
    start = threading.Barrier(8)

    def execute(_: int) -> Release:
        start.wait(10)
        return publish(request_, ctx)

    with ThreadPoolExecutor(8) as threads:
        releases = list(threads.map(execute, range(8)))

    assert releases == releases[:1] * 8
    assert listing(Path(request_.folder)) == {"1.0", "1.0/model.md", "1.0/agent.md", f"1.0/{MANIFEST}"}


def test_what_is_in_the_way_is_kept_and_told(request_: ReleaseRequest, ctx: Context) -> None:
    (Path(request_.folder) / "1.0").mkdir(parents=True)

    with pytest.raises(InputError, match="an unknown author without a manifest"):
        publish(request_, ctx)

    assert listing(Path(request_.folder)) == {"1.0"}


def test_folder_that_cannot_be_written_is_worth_another_attempt(tmp_path: Path, ctx: Context) -> None:
    (tmp_path / "releases").write_text("in the way")

    with pytest.raises((FileExistsError, NotADirectoryError)):
        publish(ReleaseRequest(folder=str(tmp_path / "releases"), pages=PAGES), ctx)


def test_without_a_name_the_release_is_called_after_its_task(tmp_path: Path, ctx: Context, fake: FakeContext) -> None:
    fake.task_id = "0199:publish[3]"

    release = publish(ReleaseRequest(folder=str(tmp_path), pages=[]), ctx)

    assert release.name == "release-0199-publish-3-"
    assert (tmp_path / release.name / MANIFEST).is_file()


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", ".hidden", "x" * 101, "a\n"])
def test_page_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        Page(name=name, text="")
    if name:
        with pytest.raises(ValidationError):
            ReleaseRequest(folder="releases", name=name, pages=[])


@pytest.mark.parametrize("names", [["a.md", "a.md"], ["a.md", "A.md"], [MANIFEST]])
def test_each_page_has_a_name_of_its_own(names: list[str]) -> None:
    with pytest.raises(ValidationError, match="a name of its own"):
        ReleaseRequest(folder="releases", pages=[Page(name=name, text="") for name in names])
