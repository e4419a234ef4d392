"""The command line as a whole: help, completion, errors, what `up` and `doctor` say, and garbage."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from typer.testing import CliRunner

from coditect import errors
from coditect.aio.launch import READY_FILE
from coditect.broker.topology import base_topology, control_plane
from coditect.cli.compose import RealConnections
from coditect.cli.doctor import check_control_plane
from coditect.cli.local import up as local
from coditect.cli.main import app
from coditect.cli.terminal.failure import describe
from coditect.cli.terminal.options import read_body
from coditect.errors import CoditectError, InputError
from coditect.local.up import process_plan
from coditect.operations.connections import Connections
from coditect.settings.settings import read_settings
from tests.unit.cli.scene import AGENT, EVERY, MemoryConnections, Served, Terminal


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


def test_mistyped_command_is_answered_with_the_nearest(terminal: Terminal) -> None:
    ran = terminal.run("worfklow", "list")

    assert (ran.code, "Did you mean 'workflow'?" in ran.err) == (2, True)


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
    error = CoditectError("It broke", given=("a", "b"), empty="", fix="Mend it")

    assert describe(error) == "Error: It broke.\n  given: a, b\nFix: Mend it"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where no server is named."""
    monkeypatch.chdir(tmp_path)
    for name in ("CODITECT_AMQP_URL", "CODITECT_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_an_address_that_failed_is_told_with_where_it_came_from(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = errors.BrokerUnavailable("The broker cannot be reached", url="amqp://me:secret@localhost/")

    guessed = describe(gone)
    (nowhere / ".coditect").mkdir(mode=0o700)
    file = nowhere / ".coditect" / "env"
    file.write_text("CODITECT_AMQP_URL=amqp://me:secret@localhost/\n")
    file.chmod(0o600)
    of_file = describe(gone)
    monkeypatch.setenv("CODITECT_AMQP_URL", "amqp://me:secret@localhost/")
    of_environment = describe(gone)

    assert "CODITECT_AMQP_URL is not set" in guessed
    assert f"address from: CODITECT_AMQP_URL in {file}" in of_file
    assert "address from: CODITECT_AMQP_URL in the environment" in of_environment
    assert "secret" not in guessed + of_file + of_environment


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
    half.fleet()
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

    remarks = terminal.run(*words).err
    monkeypatch.setenv("CODITECT_PARENT_PID", "1")
    by_a_parent = terminal.run("agent", "run", "agent.py").err

    assert remarks.count("is tried.") == 2
    assert by_a_parent == ""


def test_fleet_comes_from_the_command_line_or_the_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.coditect.fleet]\n"agents/reviewer.py" = 2\n')

    assert local.fleet([], tmp_path) == {"agents/reviewer.py": 2}
    assert local.fleet(["a.b", "c.py=3"], tmp_path) == {"a.b": 1, "c.py": 3}
    assert local.fleet([], tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    "targets", [["a=0"], ["a=many"], ["=2"], ["a=1000"], []], ids=lambda words: " ".join(words) or "no TOML"
)
def test_fleet_with_a_nonsense_count_or_a_project_file_that_is_no_toml_is_refused(
    tmp_path: Path, targets: list[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text("[")

    with pytest.raises(InputError):
        local.fleet(targets, tmp_path)


def test_plan_has_one_program_per_process_and_uses_named_servers(tmp_path: Path) -> None:
    environ = {"CODITECT_AMQP_URL": "amqp://there/"}

    fleet = local.programs_of(local.fleet(["agents/reviewer.py:one=2", "my.agent"], tmp_path))
    plan = local.plan_of(tuple(fleet), tmp_path, environ)

    assert [program.name for program in plan.programs] == ["reviewer-1", "reviewer-2", "my.agent"]
    assert plan.programs[0].argv[1:] == ("-m", "coditect", "agent", "run", "agents/reviewer.py:one")
    assert (plan.amqp_url, plan.redis_url) == ("amqp://there/", None)


def test_programs_of_a_plan_have_names_of_their_own(tmp_path: Path) -> None:
    targets = ["one.py:a", "one.py:b=2", "below/one.py", "redis.py", "up.py", "one-a.py", "api.py"]

    fleet = local.programs_of(local.fleet(targets, tmp_path))
    plan = local.plan_of((*local.http_api({}), *fleet), tmp_path, {})

    assert [program.name for program in plan.programs] == [
        "api", "one-a", "one-b-1", "one-b-2", "one", "redis-2", "up-2", "one-a-2", "api-2",
    ]  # fmt: skip


async def test_programs_of_one_file_have_ready_files_of_their_own(tmp_path: Path) -> None:
    servers = {"CODITECT_AMQP_URL": "amqp://there/", "CODITECT_REDIS_URL": "redis://there/0"}
    fleet = local.programs_of(local.fleet(["one.py:a", "one.py:b"], tmp_path))

    a, b = process_plan(local.plan_of(tuple(fleet), tmp_path, servers), environ={}).children

    Path(a.env[READY_FILE]).touch()
    assert a.ready is not None and await a.ready()
    assert b.ready is not None and not await b.ready()


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


@pytest.mark.usefixtures("nowhere")
def test_down_where_nothing_is_up_is_ok(terminal: Terminal) -> None:
    ran = terminal.run("down")
    document = terminal.run("down", "--output", "json")

    assert (ran.code, document.json) == (0, {"was_up": False, "stopped": []})
    assert "Nothing was up" in ran.err


def test_doctor_reports_every_check(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODITECT_AMQP_URL", "amqp://127.0.0.1:1/")
    monkeypatch.setenv("CODITECT_REDIS_URL", "redis://127.0.0.1:1/0")

    ran = terminal.run("doctor")
    document = terminal.run("doctor", "--output", "json")

    assert (ran.code, document.code) == (1, 1)
    assert {"python", "broker", "redis"} <= {check["name"] for check in document.json}
    assert "broker:" in ran.err


async def test_doctor_misses_a_dispatcher_only_where_one_is_needed() -> None:
    connections, served = (cast(Connections, made) for made in (MemoryConnections(), Served()))
    unneeded = await check_control_plane(connections)
    async with connections.broker() as broker:
        await broker.declare(base_topology())
        await broker.declare(control_plane())
    missed = await check_control_plane(connections)

    assert (unneeded.ok, unneeded.fix) == (True, "")
    assert (missed.ok, "coditect dispatcher run" in missed.fix) == (False, True)
    assert (await check_control_plane(served)).ok


PROGRAM = str(Path(sys.executable).with_name("coditect"))


def asking(line: str) -> dict[str, str]:
    """The environment in which bash asks for the last word of a line."""
    return {"_CODITECT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


def completed(terminal: Terminal, line: str) -> list[str]:
    """What bash offers for the last word of the line."""
    result = CliRunner().invoke(app, [], obj=terminal.connections, env=asking(line), prog_name="coditect")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split()


def test_commands_and_options_are_completed(terminal: Terminal) -> None:
    assert completed(terminal, "coditect agent li") == ["list"]
    assert completed(terminal, "coditect agent list --wat") == ["--watch"]
    assert completed(terminal, "coditect agent list --output ") == ["table", "json", "yaml"]


@pytest.mark.parametrize("line", ["capability get ", "task submit ", "agent list --capability ", "dead list -c co"])
def test_capabilities_of_living_agents_are_completed(terminal: Terminal, line: str) -> None:
    terminal.register()

    assert completed(terminal, f"coditect {line}") == ["code.review"]


@pytest.mark.parametrize("line", ["agent get ", "agent drain rev", "agent log-level all debug --agent "])
def test_living_agents_are_completed(terminal: Terminal, line: str) -> None:
    terminal.register()

    assert completed(terminal, f"coditect {line}") == [AGENT]


def test_workflows_and_durable_tasks_are_completed(terminal: Terminal, started: str) -> None:
    ran = terminal.run("task", "submit", "code.review", "{}", "--detach")
    task_id = ran.out.strip()

    assert started in completed(terminal, "coditect workflow get ")
    assert completed(terminal, f"coditect workflow cancel {started}") == [started]
    assert completed(terminal, "coditect task get ") == [task_id]
    assert completed(terminal, "coditect task get nothing-like-it") == []


@pytest.mark.parametrize("line", ["capability get ", "workflow get "])
def test_without_a_fleet_nothing_is_completed_and_nothing_is_said(tmp_path: Path, line: str) -> None:
    nobody = {"CODITECT_AMQP_URL": "amqp://127.0.0.1:1/", "CODITECT_REDIS_URL": "redis://127.0.0.1:1/0", "PATH": ""}
    environ = asking(f"coditect {line}") | nobody

    done = subprocess.run([PROGRAM], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_installed(tmp_path: Path, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/bin/{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")

    installed = subprocess.run([PROGRAM, "--install-completion", shell], capture_output=True, text=True, check=False)

    assert installed.returncode == 0
    (script,) = (path for path in tmp_path.rglob("*") if path.is_file() and "coditect" in path.name)
    assert "_CODITECT_COMPLETE" in script.read_text()


STARTS_PROGRAMS = {
    ("up",), ("down",), ("doctor",), ("load",), ("dispatcher", "run"), ("agent", "run"),
    ("api",), ("api", "mcp"), ("top",),
}  # fmt: skip
GARBAGE = (
    "", " ", "-", "--", "-1", "0", "1e999", "nan", "{", "[1", "null", "{}", "[" * 2_000, "9" * 400 + "d", "p9", "P0",
    "5m", "-5m", "code.review", "code..review", "w:task", ":task", "task-1", "a b", "*.#", "\x00", "\x1b[31m", "\udcff",
    "\u00fc" * 300, "@", "@/", "@/nowhere", "/nowhere.yaml", "01890a5d-ac96-774b-bcce-b302099a8057", "--nope", "x=1",
)  # fmt: skip


COMMANDS = {words: command for words, command in EVERY.items() if words not in STARTS_PROGRAMS}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=some.data())
def test_garbage_is_answered_with_a_sentence(words: tuple[str, ...], data: some.DataObject) -> None:
    options = [
        option.opts[0]
        for option in COMMANDS[words].params
        if option.param_type_name == "option" and option.name != "watch"
    ]
    given_options = data.draw(some.lists(some.sampled_from(options), max_size=2)) if options else []
    line = [*words, *data.draw(some.lists(some.sampled_from(GARBAGE), max_size=3))]
    for option in given_options:
        line += [option, data.draw(some.sampled_from(GARBAGE))]

    ran = Terminal().run(*line)  # raises what would be a traceback

    assert ran.code in range(5)
    assert ran.code == 0 or ran.err.strip()
    assert "Traceback" not in ran.err
    assert "\x1b[31m" not in ran.out + ran.err


@pytest.mark.parametrize("text", ["\udcff", "{\udcff}", "@\udcff", "@\x00", "@" + "a" * 5_000, "@/"])
def test_body_that_is_no_text_and_no_file_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        read_body(text)


NO_DURATION = "A duration needs a number and a unit: 250ms, 30s, 5m"
REFUSED = [
    ("task get some-task --limit 5", 2, "--limit does something with --why-not only"),
    ("task get some-task --capability code.review", 2, "--capability does something with --trace or --why-not only"),
    ("capability get code.review --priority p0", 2, "--priority does something with --why-not only"),
    ("capability get code.review --tag gpu", 2, "--tag does something with --why-not only"),
    ("capability get code.review --input 1", 2, "--input does something with --why-not only"),
    ("workflow check flow.yaml --states states.json", 2, "--states does something with --graph only"),
    ("workflow check flow.yaml --live some-run", 2, "--live does something with --graph only"),
    ("workflow start flow.yaml --with a=1", 2, "--with does something with --pattern only"),
    ("workflow start flow.yaml --plans 2", 2, "--plans does something with --goal only"),
    ("workflow start flow.yaml --tokens 200", 2, "--tokens does something with --goal only"),
    ("state get team plan --count 2", 2, "--count does something with --watch only"),
    ("doctor --port 8080", 2, "--port does something with --health only"),
    ("doctor --prove", 2, "--prove does something with --scorecard only"),
    ("dead redrive --all --input 1", 2, "--input does something with --node only"),
    ("agent log-level all loud", 2, "'loud' is not one of 'debug'"),
    ("agent log-level all debug --for soon", 2, NO_DURATION),
    ("capability get 'No Name' --why-not", 2, "lower-case words joined by dots"),
    ("load --min-ms 9 --max-ms 1", 2, "--min-ms is above --max-ms"),
    ("schedule heal", 2, "Name one service, or a file"),
    ("schedule heal shop --file heal.yaml", 2, "Name one service, or a file"),
    ("schedule heal --file heal.yaml --folder a", 2, "A file says all of its services"),
    ("schedule heal --file missing.yaml", 4, "There is no such file"),
    ("schedule heal shop --log a.log", 2, "A log is FILE=PATTERN"),
    ("schedule heal shop --metric 'http://a/m q'", 2, "A metric is 'URL NAME > VALUE'"),
    ("task get 01890a5d-ac96-774b-bcce-b302099a8057", 2, "submit it with `--detach`"),
    ("task get 01890a5d-ac96-774b-bcce-b302099a8057 --wait 10m", 2, "submit it with `--detach`"),
    ("task get 1:task --wait 10min", 2, NO_DURATION),
    ("task submit hello.greet Ada", 2, """'"Ada"'"""),
    ("task submit code.review --at tomorrow", 2, "Fix: write date, time and offset from UTC"),
    ("task submit code.review --at 2030-12-24T08:00:00", 2, "Fix: write date, time and offset from UTC"),
    ("task submit code.review --delay soon", 2, NO_DURATION),
    ("task submit code.review --idempotency-key k --wait 10min", 2, NO_DURATION),
    ("task submit code.review --stream --detach", 2, "Fix: --stream without --no-wait and --detach"),
    ("task submit code.review --stream --no-wait", 2, "Fix: --stream without --no-wait and --detach"),
    ("task submit code.review --stream --idempotency-key=k", 2, "Fix: submit without durable, idempotency_key"),
    ("task submit code.review --wait 10min", 2, NO_DURATION),
    ("top --every soon", 2, NO_DURATION),
]


@pytest.mark.parametrize(("command", "code", "refusal"), REFUSED)
def test_options_that_make_no_sense_are_refused_before_anything_is_sent(
    terminal: Terminal, command: str, code: int, refusal: str
) -> None:
    ran = terminal.run(*shlex.split(command))

    assert ran.code == code
    assert refusal in ran.err
    assert (terminal.connections.scripted.orders, terminal.connections.plane.asked) == ([], [])
