"""What is found upwards from a folder is believed only when nobody else could have written it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coditect.agent.process import ProcessId
from coditect.cli.local.up import up_folder
from coditect.local.state import Phase, UpFolder, UpState, read_state, write_atomically, write_env, write_state
from coditect.settings.settings import Settings, find_env_file, read_own, read_settings, write_own

URL = "amqp://somebody:secret@192.0.2.1/"


@pytest.fixture
def brought_up(tmp_path: Path) -> UpFolder:
    """The files of an `up` two folders above."""
    folder = UpFolder(tmp_path / ".coditect")
    write_env(folder, {"CODITECT_AMQP_URL": URL, "CODITECT_REDIS_URL": "redis://192.0.2.1/"})
    write_state(folder, UpState("marker", Phase.READY, ProcessId(1, "never"), URL, "redis://192.0.2.1/"))
    return folder


@pytest.fixture
def below(tmp_path: Path) -> Path:
    place = tmp_path / "project" / "inner"
    place.mkdir(parents=True)
    return place


def test_own_files_are_believed(brought_up: UpFolder, below: Path) -> None:
    assert read_settings({}, folder=below).amqp_url == URL
    assert read_state(brought_up) is not None
    assert up_folder(below) == brought_up.path


@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666])
def test_files_that_others_can_write_are_not_believed(
    mode: int, brought_up: UpFolder, below: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brought_up.env.chmod(mode)
    brought_up.state.chmod(mode)

    assert read_settings({}, folder=below) == Settings()
    assert read_state(brought_up) is None
    assert up_folder(below) == below / ".coditect"
    assert {"path", "fix"} <= vars(caplog.records[0]).keys()


def test_files_of_another_user_are_not_believed(
    brought_up: UpFolder, below: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody_else = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody_else)

    assert read_settings({}, folder=below) == Settings()
    assert read_state(brought_up) is None


def test_own_file_further_up_is_believed_past_a_strangers(brought_up: UpFolder, below: Path) -> None:
    strangers = below / ".coditect" / "env"
    strangers.parent.mkdir()
    strangers.write_text("CODITECT_AMQP_URL=amqp://evil/\n")
    strangers.chmod(0o666)

    assert find_env_file(below) == brought_up.env


@pytest.mark.parametrize("linked", ["env", "folder"])
def test_links_are_not_followed(linked: str, brought_up: UpFolder, below: Path) -> None:
    place = below / ".coditect"
    if linked == "folder":
        place.symlink_to(brought_up.path)
    else:
        place.mkdir()
        (place / "env").symlink_to(brought_up.env)

    assert find_env_file(below) == brought_up.env
    assert read_own(place / "env") is None


def test_pipe_in_place_of_the_file_does_not_hold_a_program_up(below: Path) -> None:
    (below / ".coditect").mkdir()
    os.mkfifo(below / ".coditect" / "env", 0o600)

    assert read_own(below / ".coditect" / "env") is None


def test_file_in_a_folder_that_others_can_write_is_not_believed(brought_up: UpFolder, below: Path) -> None:
    brought_up.path.chmod(0o777)

    assert read_settings({}, folder=below) == Settings()


@pytest.mark.parametrize("planted", ["link", "file"])
def test_file_is_not_written_through_what_was_there_before(planted: str, tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", tmp_path / "folder" / "env"
    victim.write_text("precious")
    file.parent.mkdir()
    for place in (file, file.with_name(f".env.{os.getpid()}")):
        if planted == "link":
            place.symlink_to(victim)
        else:
            place.touch()
            place.chmod(0o666)

    write_atomically(file, "text")

    assert (victim.read_text(), file.read_text()) == ("precious", "text")
    assert (file.is_symlink(), file.stat().st_mode & 0o777) == (False, 0o600)


def test_file_that_cannot_be_replaced_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()

    with pytest.raises(OSError, match="directory"):
        write_own(tmp_path / "env", "text")

    assert [place.name for place in tmp_path.iterdir()] == ["env"]
