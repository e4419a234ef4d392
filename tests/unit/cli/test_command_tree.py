from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from coditect import errors
from coditect.broker.topology import base_topology, control_plane
from coditect.cli.compose import RealConnections
from coditect.cli.doctor import check_control_plane
from coditect.cli.local import up as local
from coditect.cli.terminal.failure import describe
from coditect.errors import CoditectError, InputError
from coditect.operations.connections import Connections
from coditect.settings.settings import read_settings
from tests.unit.cli.scene import EVERY, MemoryConnections, Served, Terminal


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_explains_itself_with_an_example(terminal: Terminal, words: tuple[str, ...]) -> None:
    ran = terminal.run(*words, "--help")

    assert ran.code == 0
    assert f"Example: coditect {' '.join(words)}" in ran.out


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from coditect.cli.main import app\n"
        "heavy = {'aiormq', 'redis', 'pydantic', 'rich', 'yaml', 'jmespath'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_command_is_a_usage_error(terminal: Terminal) -> None:
    assert terminal.run("nonsense").code == 2


def test_mistyped_command_is_answered_with_the_nearest(terminal: Terminal) -> None:
    assert "Did you mean 'workflow'?" in terminal.run("worfklow", "list").err


def test_version_is_shown(terminal: Terminal) -> None:
    ran = terminal.run("--version")

    assert ran.code == 0
    assert ran.out.strip()


@pytest.mark.parametrize(
    ("kind", "code"),
    [("TaskFailed", 1), ("BrokerUnavailable", 1), ("InvalidTask", 2), ("ResultTimeout", 3), ("NotFound", 4)],
)
def test_each_kind_of_error_has_its_exit_code(kind: str, code: int) -> None:
    assert getattr(errors, kind).exit_code == code


def test_error_is_told_with_facts_and_the_way_out_once() -> None:
    told = describe(CoditectError("It broke", given=("a", "b"), empty="", fix="Mend it"))

    assert told == "Error: It broke.\n  given: a, b\nFix: Mend it"


def test_an_address_that_failed_is_told_with_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CODITECT_AMQP_URL", "CODITECT_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    gone = errors.BrokerUnavailable("The broker cannot be reached", url="amqp://me:secret@localhost/")

    nowhere = describe(gone)
    (tmp_path / ".coditect").mkdir(mode=0o700)
    file = tmp_path / ".coditect" / "env"
    file.write_text("CODITECT_AMQP_URL=amqp://me:secret@localhost/\n")
    file.chmod(0o600)
    of_file = describe(gone)
    monkeypatch.setenv("CODITECT_AMQP_URL", "amqp://me:secret@localhost/")
    of_environment = describe(gone)

    assert "CODITECT_AMQP_URL is not set" in nowhere
    assert f"address from: CODITECT_AMQP_URL in {file}" in of_file
    assert "address from: CODITECT_AMQP_URL in the environment" in of_environment
    assert "secret" not in nowhere + of_file + of_environment


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where no server is named."""
    monkeypatch.chdir(tmp_path)
    for name in ("CODITECT_AMQP_URL", "CODITECT_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_command_says_once_that_it_guesses_the_address(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    guessing = RealConnections(read_settings())
    for _ in range(2):
        guessing.broker()
        guessing.fleet()
    guessed = capsys.readouterr()
    monkeypatch.setenv("CODITECT_AMQP_URL", "amqp://me:secret@there/")
    half = RealConnections(read_settings())
    half.client()
    half_told = capsys.readouterr().err

    assert guessed.out == ""
    assert guessed.err.splitlines() == [
        f"{name} is not set, and no .coditect/env here or above names it: {url} is tried. "
        "Set it, or let `coditect up` start servers."
        for name, url in (
            ("CODITECT_AMQP_URL", "amqp://localhost:5672/"),
            ("CODITECT_REDIS_URL", "redis://localhost:6379/0"),
        )
    ]
    assert "CODITECT_REDIS_URL" in half_told
    assert "AMQP" not in half_told


@pytest.mark.parametrize("words", [("agent", "run", "agent.py"), ("dispatcher", "run")], ids=" ".join)
def test_a_program_says_that_it_guesses_the_addresses(
    terminal: Terminal, nowhere: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("coditect.agent.program.run", lambda *_, **__: 0)
    monkeypatch.setattr("coditect.cli.dispatcher.installed", lambda: SimpleNamespace(main=lambda _: 0))

    told = terminal.run(*words).err
    monkeypatch.setenv("CODITECT_PARENT_PID", "1")
    by_a_parent = terminal.run("agent", "run", "agent.py").err

    assert told.count("is tried.") == 2
    assert by_a_parent == ""


def test_fleet_comes_from_the_command_line_or_the_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.coditect.fleet]\n"agents/reviewer.py" = 2\n')

    assert local.fleet([], tmp_path) == {"agents/reviewer.py": 2}
    assert local.fleet(["a.b", "c.py=3"], tmp_path) == {"a.b": 1, "c.py": 3}
    assert local.fleet([], tmp_path / "nowhere") == {}


@pytest.mark.parametrize("text", ["a=0", "a=many", "=2", "a=1000"])
def test_fleet_with_a_nonsense_count_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        local.fleet([text], Path())


def test_project_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[")

    with pytest.raises(InputError):
        local.fleet([], tmp_path)


def test_plan_has_one_program_per_process_and_uses_named_servers(tmp_path: Path) -> None:
    environ = {"CODITECT_AMQP_URL": "amqp://there/"}

    fleet = local._fleet_programs(["agents/reviewer.py:one=2", "my.agent"], tmp_path)
    plan = local.plan_of(tuple(fleet), tmp_path, environ)

    assert [program.name for program in plan.programs] == ["reviewer-1", "reviewer-2", "my.agent"]
    assert plan.programs[0].argv[1:] == ("-m", "coditect", "agent", "run", "agents/reviewer.py:one")
    assert (plan.amqp_url, plan.redis_url) == ("amqp://there/", None)


def test_programs_of_a_plan_have_names_of_their_own(tmp_path: Path) -> None:
    targets = ["one.py:a", "one.py:b=2", "below/one.py", "redis.py", "up.py", "one-a.py", "api.py"]

    fleet = local._fleet_programs(targets, tmp_path)
    plan = local.plan_of((*local.http_api({}), *fleet), tmp_path, {})

    assert [program.name for program in plan.programs] == [
        "api", "one-a", "one-b-1", "one-b-2", "one", "redis-2", "up-2", "one-a-2", "api-2",
    ]  # fmt: skip


def test_up_without_agents_says_so(terminal: Terminal, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.local.up", lambda *_, **__: None)

    assert "No agent is started: name files" in terminal.run("up").err
    assert "No agent is started" not in terminal.run("up", "--no-agents").err


def test_up_that_a_person_ends_says_what_stays(
    terminal: Terminal, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coditect.local.up", lambda *_, **__: None)
    monkeypatch.setattr("coditect.local.up_detached", interrupted)
    stays = f"What waits stays in {nowhere / '.coditect'}: `coditect up` goes on with it.\n"

    ended = terminal.run("up", "--no-agents")
    halfway = terminal.run("up", "--no-agents", "--detach")

    assert (ended.code, ended.err) == (0, f"Stopped. {stays}")
    assert halfway.code != 0
    assert f"Nothing goes on: what was started is stopped again. {stays}" in halfway.err


def test_down_where_nothing_is_up_is_ok(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    told = terminal.run("down")
    document = terminal.run("down", "--output", "json")

    assert (told.code, document.json) == (0, {"was_up": False, "stopped": []})
    assert "Nothing was up" in told.err


def test_doctor_reports_every_check(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CODITECT_AMQP_URL", "CODITECT_REDIS_URL"):
        monkeypatch.setenv(name, "amqp://127.0.0.1:1/" if "AMQP" in name else "redis://127.0.0.1:1/0")

    told = terminal.run("doctor")
    document = terminal.run("doctor", "--output", "json")

    assert (told.code, document.code) == (1, 1)
    assert {"python", "broker", "redis"} <= {check["name"] for check in document.json}
    assert "broker:" in told.err


async def test_doctor_misses_a_dispatcher_only_where_one_is_needed() -> None:
    connections, served = (cast(Connections, one) for one in (MemoryConnections(), Served()))
    unneeded = await check_control_plane(connections)
    async with connections.broker() as broker:
        await broker.declare(base_topology())
        await broker.declare(control_plane())
    missed = await check_control_plane(connections)

    assert (unneeded.ok, unneeded.fix) == (True, "")
    assert (missed.ok, "coditect dispatcher run" in missed.fix) == (False, True)
    assert (await check_control_plane(served)).ok
