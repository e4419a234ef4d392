import os
from importlib import metadata
from pathlib import Path

import orjson
import pytest
import uvloop

from coditect.agent.process import ProcessId, identify
from coditect.errors import install_command
from coditect.local.doctor import (
    Check,
    check_disk,
    check_eviction,
    check_python,
    check_server,
    check_speed,
    check_up,
    doctor,
)
from coditect.local.errors import ServerUnreachable
from coditect.local.state import ChildState, Phase, UpFolder, UpState, write_env, write_state


def a_state(*, phase: Phase = Phase.READY, alive: bool = True) -> UpState:
    me = identify(os.getpid())
    assert me is not None
    supervisor = me if alive else ProcessId(me.pid, "another start")
    return UpState("m", Phase.READY, supervisor, "amqp://a", "redis://r", children=(ChildState("redis", phase),))


def test_python_disk_and_speed_say_what_is_there(tmp_path: Path) -> None:
    assert check_python().ok
    assert "3.11" in check_python((3, 10, 2)).fix

    assert "GB free" in check_disk(tmp_path / "not" / "yet").detail

    both = check_speed({"uvloop": uvloop, "orjson": orjson})
    slow = check_speed({"uvloop": None, "orjson": orjson})

    assert both == Check("speed", True, f"uvloop {metadata.version('uvloop')}, orjson {orjson.__version__}")
    assert slow.ok
    assert f"without uvloop ({install_command('speed')})" in slow.detail


def test_what_is_left_of_an_up_is_named(tmp_path: Path) -> None:
    assert check_up(UpFolder(tmp_path), None) == Check("up", True, "not up")

    found = check_up(UpFolder(tmp_path), a_state(alive=False))

    assert (found.ok, "killed" in found.detail) == (False, True)

    folder = UpFolder(tmp_path)
    write_env(folder, {"CODITECT_AMQP_URL": "a", "CODITECT_REDIS_URL": "r"})

    found = check_up(folder, None)

    assert not found.ok
    assert "coditect up" in found.fix


@pytest.mark.parametrize(("phase", "ok"), [(Phase.READY, True), (Phase.RESTARTING, False)])
def test_running_up_is_as_good_as_its_children(tmp_path: Path, phase: Phase, ok: bool) -> None:
    assert check_up(UpFolder(tmp_path), a_state(phase=phase)).ok is ok


@pytest.mark.parametrize(("version", "ok"), [("3.10.8", True), ("4.0.5", True), ("3.9.29", False), ("unknown", False)])
async def test_old_server_is_refused(version: str, ok: bool) -> None:
    async def version_of(_: str) -> str:
        return version

    assert (await check_server("broker", "amqp://a", version_of, (3, 10))).ok is ok


async def test_unreachable_server_and_missing_address_have_a_fix() -> None:
    async def unreachable(_: str) -> str:
        raise ServerUnreachable("Nothing answers")

    assert "coditect up" in (await check_server("broker", "amqp://a", unreachable, (3, 10))).fix
    assert "coditect up" in (await check_server("broker", None, unreachable, (3, 10))).fix


async def test_eviction_is_optional_but_an_api_that_was_named_must_answer() -> None:
    without = await check_eviction(None)
    nobody = await check_eviction("http://coditect:secret@127.0.0.1:9")
    nonsense = await check_eviction("localhost:15672")

    assert (without.ok, nobody.ok, nonsense.ok) == (True, False, False)
    assert "CODITECT_MANAGEMENT_URL" in without.detail
    assert "rabbitmq-plugins enable" in nobody.fix
    assert "secret" not in nobody.detail
    assert "CODITECT_MANAGEMENT_URL=https://" in nonsense.fix


def test_doctor_looks_at_everything_and_changes_nothing(tmp_path: Path) -> None:
    write_state(UpFolder(tmp_path), a_state())
    before = sorted(tmp_path.iterdir())

    checks = doctor(tmp_path, environ=os.environ, amqp_url="amqp://127.0.0.1:9", redis_url="redis://127.0.0.1:9")

    assert [check.name for check in checks] == [
        "python", "speed", "rabbitmq-server", "redis-server", "disk", "up", "broker", "redis", "eviction",
    ]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
