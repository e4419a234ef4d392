import os
import stat
from pathlib import Path

import pytest

from coditect.agent.process import ProcessId
from coditect.local.doctor import check_up
from coditect.local.errors import AlreadyUp, StartFailed
from coditect.local.state import (
    ChildState,
    Phase,
    UpFolder,
    UpState,
    forget,
    hold,
    make_private,
    read_state,
    write_env,
    write_state,
)


def a_state(pid: int = 1) -> UpState:
    return UpState(
        marker="m",
        phase=Phase.READY,
        supervisor=ProcessId(pid, "another start"),
        amqp_url="amqp://a",
        redis_url="redis://r",
        children=(ChildState("redis", Phase.READY, ProcessId(2, "3"), restarts=1, last_exit=-9),),
    )


def test_state_is_read_as_it_was_written_and_none_where_the_folder_is_missing(tmp_path: Path) -> None:
    folder = UpFolder(tmp_path / "new")

    write_state(folder, a_state())

    assert read_state(folder) == a_state()
    assert not a_state().running

    assert read_state(UpFolder(tmp_path / "missing")) is None


@pytest.mark.parametrize("text", ["", "{", '{"marker": 1}'])
def test_unreadable_state_is_no_state(tmp_path: Path, text: str) -> None:
    folder = UpFolder(tmp_path)
    folder.state.write_text(text)

    assert read_state(folder) is None


def test_env_holds_the_addresses_for_the_owner_only(tmp_path: Path) -> None:
    folder = UpFolder(tmp_path)

    write_env(folder, {"CODITECT_AMQP_URL": "amqp://a", "CODITECT_REDIS_URL": "redis://r"})

    assert folder.env.read_text().splitlines() == ["CODITECT_AMQP_URL=amqp://a", "CODITECT_REDIS_URL=redis://r"]
    assert stat.S_IMODE(folder.env.stat().st_mode) == 0o600


def test_forget_removes_what_commands_find_and_is_idempotent(tmp_path: Path) -> None:
    folder = UpFolder(tmp_path)
    write_state(folder, a_state())
    write_env(folder, {"CODITECT_AMQP_URL": "a", "CODITECT_REDIS_URL": "r"})

    forget(folder)
    forget(folder)

    assert list(tmp_path.iterdir()) == []


def test_folder_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    folder = UpFolder(tmp_path)

    with hold(folder), pytest.raises(AlreadyUp, match="coditect down"), hold(folder):
        pass

    with hold(folder):
        pass


@pytest.mark.parametrize("mode", [None, 0o755, 0o777])
def test_held_folder_is_closed_to_other_users(tmp_path: Path, mode: int | None) -> None:
    folder = UpFolder(tmp_path / "new" / ".coditect")
    if mode is not None:
        folder.path.mkdir(parents=True)
        folder.path.chmod(mode)
    before = os.umask(0)

    try:
        with hold(folder):
            write_state(folder, a_state())
    finally:
        os.umask(before)

    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert mode is not None or stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.path.iterdir()} == {0o600}


def test_folder_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".coditect").symlink_to("elsewhere")

    with pytest.raises(StartFailed, match=r"Remove or own"), hold(UpFolder(tmp_path / ".coditect")):
        pass

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_env_holds_the_address_and_the_key_of_the_api(tmp_path: Path) -> None:
    folder = UpFolder(tmp_path)
    folder.run.mkdir()
    folder.ready_file("api").write_text("http://127.0.0.1:8010")

    address = folder.address_of("api") or ""
    write_env(folder, {"CODITECT_API_URL": address, "CODITECT_API_KEY": "coditect_k"})

    assert folder.env.read_text().splitlines() == [
        "CODITECT_API_URL=http://127.0.0.1:8010",
        "CODITECT_API_KEY=coditect_k",
    ]
    assert folder.dashboard() == "http://127.0.0.1:8010/#/fleet?key=coditect_k"


def test_folder_of_another_user_is_not_used_by_root_either(tmp_path: Path) -> None:
    owned = tmp_path if os.geteuid() == 0 else Path("/")
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 12345)

    with pytest.raises(StartFailed, match="cannot be made private"):
        make_private(owned)

    assert not check_up(UpFolder(owned), None).ok
