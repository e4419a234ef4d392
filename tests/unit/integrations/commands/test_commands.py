"""Commands as agents in a fleet under test: their ends, their limits, and what hostile ones can do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from coditect import TaskFailed, TaskRejected
from coditect.agent.runtime import STUCK_SECONDS, SWALLOWED_SECONDS
from coditect.agent.workspaces import WORKSPACE_PREFIX
from coditect.errors import InputError, InvalidTask, SetupError
from coditect.integrations.commands.loading import MAX_FILE_BYTES, command_agent, load_commands
from coditect.integrations.commands.schema import InputTemplate, checked_commands, filled_arguments
from coditect.testing import TestFleet

ECHO = "import sys, json; print(json.dumps({'got': json.load(sys.stdin)}))"


@asynccontextmanager
async def fleet(folder: Path, code: str, *arguments: str, **fields: Any) -> AsyncIterator[TestFleet]:
    command = [sys.executable, "-c", code, *arguments]
    given = {"name": "tool", "capabilities": {"tool.run": {"command": command, "attempts": 1} | fields}}
    async with TestFleet(agents=[command_agent(checked_commands(given), folder=str(folder))]) as running:
        yield running
    assert not list(folder.glob(f"{WORKSPACE_PREFIX}*")), "no workspace is left"
    assert not _left(str(folder)), "no process is left"


def _left(mark: str) -> list[int]:
    return [process.pid for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


async def run(fleet: TestFleet, given: Any = None) -> Any:
    return await (await fleet.client.submit("tool.run", given)).result()


async def test_a_task_is_json_on_stdin_and_its_result_json_on_stdout(tmp_path: Path) -> None:
    async with fleet(tmp_path, ECHO) as running:
        assert await run(running, {"text": "; rm -rf /\n\0 'ä"}) == {"got": {"text": "; rm -rf /\n\0 'ä"}}


async def test_it_works_in_a_folder_of_its_own_with_the_allowed_variables_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOOL", "yes")
    monkeypatch.setenv("AWS_SECRET", "do not pass on")
    code = "import os, json; print(json.dumps([os.getcwd(), os.listdir(), dict(os.environ)]))"
    async with fleet(tmp_path, code, environment=["MY_*"]) as running:
        folder, listed, environment = await run(running)

    assert folder.startswith(str(tmp_path)) and listed == [] and not Path(folder).exists()
    assert environment["MY_TOOL"] == "yes" and environment["HOME"] == folder
    assert environment["CODITECT_ATTEMPT"] == "1"
    assert "AWS_SECRET" not in environment


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a process's environment and descriptors")
async def test_command_finds_no_secret_in_its_parent_and_no_descriptor_but_its_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET", "do not pass on")
    code = (
        "import json, os; parent = open(f'/proc/{os.getppid()}/environ').read(); "
        "print(json.dumps([parent, sorted(map(int, os.listdir('/proc/self/fd')))]))"
    )
    async with fleet(tmp_path, code) as running:
        environment, descriptors = await run(running)

    assert "do not pass on" not in environment
    assert descriptors[:3] == [0, 1, 2]
    assert len(descriptors) == 4  # the last is that of the list


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a request")
def test_launcher_is_not_dumpable() -> None:
    code = (
        "import ctypes, socket; from coditect.integrations.commands import launcher; "
        "ours, theirs = socket.socketpair(); ours.close(); launcher.main(theirs); "
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"0\n"


async def test_values_fill_arguments_and_stay_arguments(tmp_path: Path) -> None:
    code = "import sys, json; print(json.dumps(sys.argv[1:]))"
    templates = ("--title={input.title}", "{input.n}", "--", "{input.title}")
    async with fleet(tmp_path, code, *templates, input="arguments") as running:
        assert await run(running, {"title": "-x; rm -rf /\n$(id)", "n": 7}) == [
            "--title=-x; rm -rf /\n$(id)", "7", "--", "-x; rm -rf /\n$(id)",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "given", "words"),
    [
        ("{input.x}", {"x": "--upload-pack=evil"}, "option"),
        ("{input.x}", {"x": "--"}, "option"),
        ("{input.x}", {"x": -5}, "option"),
        ("-m={input.x}", {"x": "a\0b"}, "NUL"),
        ("{input.x}", {}, "input.x"),
        ("{input.x.y}", {"x": "text"}, "input.x.y"),
        ("{input.x}", {"x": "a" * 200_000}, "too long"),
    ],
)
def test_what_could_be_more_than_an_argument_is_refused(template: str, given: Any, words: str) -> None:
    with pytest.raises(InvalidTask, match=words):
        filled_arguments((InputTemplate("prog"), InputTemplate(template)), given)


def test_a_template_has_fields_of_the_input_and_nothing_else() -> None:
    assert InputTemplate("{{input}} {env.HOME}").fill([1]) == "{[1]} {env.HOME}"
    assert InputTemplate("{input.a}").fill({"a": "{input.b}"}) == "{input.b}"
    with pytest.raises(InputError):
        InputTemplate("x\0")


FLOOD = "import sys\nwhile True: sys.{}.write('x' * 65536)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
OUT_FILE: dict[str, Any] = {"result": {"file": "out.json"}}


@pytest.mark.parametrize(
    ("code", "fields", "words"),
    [
        ("import sys; sys.exit('it is broken')", {}, "it is broken"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {}, "signal=9"),
        ("pass", {}, "gave no result"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)) * 40)", {}, "gave no result"),
        ("print('{')", {}, "gave no result"),
        ("import sys; sys.exit(65)", {}, "refuses the input"),
        ('import sys; print(\'{"is_error": true, "result": "no credit"}\'); sys.exit(1)', {}, "no credit"),
        ("", {"command": ["/no/such/program"]}, "install it"),
        (FLOOD.format("stdout"), {"limits": {"output": "1MB"}}, "wrote more than it may"),
        (FLOOD.format("stderr"), {"limits": {"output": "1MB"}}, "wrote more than it may"),
        ("b'x' * 2**30", {"limits": {"memory": "256MB"}}, "MemoryError"),
        (DEAF, {"limits": {"time": "1s", "grace": "3s"}}, "the command python"),
        ("import os; os.symlink('/etc/passwd', 'out.json')", OUT_FILE, "outside of the workspace"),
        ("import os; os.mkdir('out.json')", OUT_FILE, "no regular file"),
        ("import os; os.mkfifo('out.json')", OUT_FILE, "no regular file"),
    ],
)
async def test_what_is_no_good_end_is_a_failure_that_says_why(
    tmp_path: Path, code: str, fields: dict[str, Any], words: str
) -> None:
    async with fleet(tmp_path, code, **fields) as running:
        with pytest.raises(TaskFailed, match=words):
            await run(running)


@pytest.mark.parametrize(("exit_code", "attempts"), [(1, 1), (65, 1), (75, 3), (9, 3)])
async def test_exit_codes_say_whether_it_is_tried_again(tmp_path: Path, exit_code: int, attempts: int) -> None:
    log = tmp_path / "log"
    code = f"import sys; open({str(log)!r}, 'a').write('x'); sys.exit({exit_code})"
    async with fleet(tmp_path, code, attempts=3, exit_codes={"failed": [1]}) as running:
        with pytest.raises(TaskFailed):
            await run(running)

    assert len(log.read_text()) == attempts


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other bounds")
async def test_arguments_that_are_too_long_together_are_the_fault_of_the_input(tmp_path: Path) -> None:
    async with fleet(tmp_path, "pass", *["{input}"] * 100, input="arguments") as running:
        with pytest.raises(TaskFailed, match=r"too long.*from stdin"):
            await run(running, "a" * 100_000)


async def test_memory_limit_that_cannot_be_set_ends_the_task_and_says_why(tmp_path: Path) -> None:
    async with fleet(tmp_path, "pass", attempts=3, limits={"memory": 2**63}) as running:
        with pytest.raises(TaskFailed, match=r"memory limit cannot be set.*too large") as caught:
            await run(running)

    assert caught.value.facts["attempt"] == 1


def test_memory_limit_above_the_hard_limit_is_the_answer_to_the_agent() -> None:
    code = (
        "import os, resource; from coditect.integrations.commands import launcher; "
        "resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32)); "
        "os.getuid() or os.setuid(65534); "  # root may raise the limit
        "request = {'argv': ['true'], 'folder': '/', 'environment': {}, 'memory_bytes': 2**33}; "
        "print(launcher._start(request, [0, 1, 2])[1])"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.decode()

    assert "unlimited" in found and "not allowed to raise" in found and str(2**32) in found


LINES = """
print('{"progress": 0.5, "note": "half"}', flush=True)
print('{"type": "step", "usage": {"cost": 0.25}}')
print('no json')
print('{"type": "result", "is_error": false, "result": [1, 2]}')
"""
OF_LINES = {"format": "lines", "value": "result", "failed": "is_error", "cost": "usage.cost"}
EMPTY = "print('{\"is_error\": false}'); print('{}'); print('{\"progress\": 1.0}')"


@pytest.mark.parametrize(
    ("code", "fields", "given", "value"),
    [
        ("import sys; sys.stdin.close(); print(1)", {}, "x" * 500_000, 1),
        (LINES, {"result": OF_LINES}, None, [1, 2]),
        (EMPTY, {"result": {"format": "lines"}}, None, {}),
        ("open('out.json', 'w').write('[1]')", OUT_FILE, None, [1]),
        (r"print('  a\t \n\n', end='\r\n')", {"result": {"format": "text"}}, None, "  a\t "),
    ],
    ids=["that closes stdin early", "in lines", "an empty object", "in a file", "a text but the newlines at its end"],
)
async def test_a_command_that_ends_well_gives_its_result(
    tmp_path: Path, code: str, fields: dict[str, Any], given: Any, value: Any
) -> None:
    async with fleet(tmp_path, code, **fields) as running:
        assert await run(running, given) == value


async def test_secrets_are_hidden_in_its_complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "sk-very-secret")
    code = "import os, sys; sys.exit('cannot log in with ' + os.environ['MY_API_KEY'])"
    async with fleet(tmp_path, code, environment=["MY_API_KEY"]) as running:
        with pytest.raises(TaskFailed) as caught:
            await run(running)

    assert "log in with [hidden]" in str(caught.value) and "sk-very" not in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "sys.exit(key + 'x' * 1_990)",
        "print(key + 'x' * 1_990); sys.exit(1)",
        "print('x' * 195 + key)",
        "print(json.dumps({'progress': 0.5, 'note': 'x' * 495 + key})); sys.exit(1)",
        "print(json.dumps({'is_error': True, 'key': key, 'pad': 'x'})); sys.exit(1)",
        "print(json.dumps(key)[:-1])",
        "os.write(2, os.environb[b'MY_API_KEY']); sys.exit(1)",
    ],
    ids=["stderr", "stdout", "no result", "note", "in JSON", "in broken JSON", "no UTF-8"],
)
async def test_no_part_of_a_secret_is_shown_where_a_text_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setenv("MY_API_KEY", 'AAAAAA-"BBBBBB-CCCCCC' + ("\udcff" if "environb" in code else ""))
    prelude = "import json, os, sys; key = os.environ['MY_API_KEY']; "
    async with fleet(tmp_path, prelude + code, environment=["MY_API_KEY"]) as running:
        with pytest.raises(TaskFailed) as caught:
            await run(running)
        shown = f"{caught.value} {running.events}"

    assert not [part for part in ("AAA", "BBB", "CCC") if part in shown]


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "600.125"])
        os._exit(0)
open(sys.argv[1], "w").write("x")
{then}
"""


def _sleepers() -> list[int]:
    return _left("600.125")


async def test_a_result_ends_all_that_it_started_in_whatever_session(tmp_path: Path) -> None:
    async with fleet(tmp_path, STUBBORN.replace("{then}", "print(1)"), str(tmp_path / "began")) as running:
        assert await run(running) == 1
        assert _sleepers() == []


async def test_a_cancel_ends_what_ignores_sigterm_with_all_that_it_started(tmp_path: Path) -> None:
    began = tmp_path / "began"
    code = STUBBORN.replace("{then}", "time.sleep(600)")
    async with fleet(tmp_path, code, str(began), limits={"grace": "0.2s"}) as running:
        handle = await running.client.submit("tool.run")
        deadline = time.monotonic() + 10
        while not began.exists() and time.monotonic() < deadline:
            await asyncio.to_thread(time.sleep, 0.01)
        await handle.cancel()
        outcome = await handle.outcome()
        assert outcome.status.value == "canceled"
        assert _sleepers() == []


LAST = '{"type": "result", "is_error": %s, "result": [1, 2]}'
FAILED, FINE = LAST % "true", LAST % "false"
TURN = '{"type": "turn", "is_error": false, "result": "an earlier line"}\n'
LONG = '{"is_error": true, "result": "' + "x" * 70_000 + '"}'


@pytest.mark.parametrize(
    ("stdout", "words"),
    [
        (TURN + FAILED, "says that it failed"),
        (TURN + LONG + "\n", "says that it failed"),
        (TURN + "  \t" + FAILED + " \r\n", "says that it failed"),
        (TURN + "\x1b[1;31m" + FAILED + "\x1b[0m\n", "says that it failed"),
        (TURN + "\r\x1b[K\x1b]0;title\x07" + FAILED + "\n\x1b[?25h", "says that it failed"),
        (TURN + FAILED + '\n{"progress": 1.0}\n', "says that it failed"),
        (TURN + '{"progress": 1.0, "is_error": true}\n', "says that it failed"),
        (TURN + "\b\b\0" + FAILED + "\x0f\x7f\n", "says that it failed"),
        (TURN + FAILED[:-3], "reason="),
        (TURN + '{"result": NaN}\n', "nan is no number of JSON"),
        ("no line\n", "gave no result"),
    ],
)
async def test_no_earlier_line_takes_the_place_of_the_last(tmp_path: Path, stdout: str, words: str) -> None:
    (tmp_path / "stdout").write_bytes(stdout.encode())
    code = f"import shutil, sys; shutil.copyfileobj(open({str(tmp_path / 'stdout')!r}, 'rb'), sys.stdout.buffer)"
    async with fleet(tmp_path, code, result={"format": "lines", "value": "result", "failed": "is_error"}) as running:
        with pytest.raises(TaskFailed, match=words):
            await run(running)


async def test_a_json_line_on_stderr_is_no_result(tmp_path: Path) -> None:
    code = f"import sys; print({FINE!r}, flush=True); sys.stdout.close(); sys.stderr.write({TURN!r})"
    async with fleet(tmp_path, code, result={"format": "lines", "value": "result"}) as running:
        assert await run(running) == [1, 2]


@pytest.mark.parametrize("form", ["json", "lines", "text"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_a_byte_order_mark_is_read(tmp_path: Path, form: str, encoding: str) -> None:
    text = '{"a": "\u00e4"}'
    code = f"import sys; sys.stdout.buffer.write({text.encode(encoding)!r})"
    async with fleet(tmp_path, code, result={"format": form}) as running:
        assert await run(running) == (text if form == "text" else {"a": "ä"})


@pytest.mark.parametrize("form", ["json", "lines"])
async def test_latin_1_is_refused_with_the_parser_s_reason(tmp_path: Path, form: str) -> None:
    code = 'import sys; sys.stdout.buffer.write(b\'{"a": "\\xe4"}\')'
    async with fleet(tmp_path, code, result={"format": form}) as running:
        with pytest.raises(TaskFailed, match=r"not valid UTF-8"):
            await run(running)


async def test_an_input_that_does_not_fit_its_schema_is_rejected(tmp_path: Path) -> None:
    schema = {"type": "object", "required": ["pr"], "properties": {"pr": {"type": "integer"}}}
    async with fleet(tmp_path, ECHO, input_schema=schema) as running:
        assert await run(running, {"pr": 1}) == {"got": {"pr": 1}}
        with pytest.raises(TaskRejected, match="is a required property"):
            await run(running, {})


def test_a_file_of_commands_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "commands.yaml"
    text = "name: fixer\ncapabilities:\n  code.fix:\n    command: my-agent --json\n    limits: {time: 10m}\n"
    for marks in ("", "\ufeff", "\ufeff\ufeff"):
        file.write_text(marks + text)
        assert [capability.name for capability in load_commands(file).capabilities] == ["code.fix"]

    file.write_text("capabilities:\n  code.fix:\n    command: ['{input.x}']\n    shell: true\n")
    with pytest.raises(SetupError) as caught:
        load_commands(file)
    assert "shell" in str(caught.value) and "docs/programs.md" in str(caught.value)


def test_a_file_that_is_too_large_is_said_to_be_so_whatever_its_bytes_are(tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text("name: shell\ndescription: " + "é" * (MAX_FILE_BYTES // 2))

    with pytest.raises(SetupError, match="too large"):
        load_commands(file)


def test_the_grace_of_a_command_ends_before_its_agent_is_replaced() -> None:
    def given(grace: str) -> dict[str, Any]:
        return {"capabilities": {"code.fix": {"command": "my-agent", "limits": {"grace": grace}}}}

    checked_commands(given("30s"))
    with pytest.raises(SetupError, match="grace"):
        checked_commands(given(f"{SWALLOWED_SECONDS + STUCK_SECONDS}s"))


def test_a_schema_that_is_none_is_refused_by_the_name_of_its_capability() -> None:
    file = checked_commands({"capabilities": {"code.fix": {"command": "my-agent", "input_schema": {"type": "txt"}}}})

    with pytest.raises(SetupError, match="no JSON Schema") as caught:
        command_agent(file)
    assert caught.value.facts["capability"] == "code.fix"


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


async def test_it_works_in_a_worktree_of_the_named_branch_that_is_gone_afterwards(tmp_path: Path) -> None:
    repository = tmp_path / "shop"
    repository.mkdir()
    _git(repository, "init", "-q", "-b", "main")
    (repository / "a.txt").write_text("main")
    _git(repository, "add", "a.txt")
    _git(repository, "commit", "-qm", "first")
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    hook.chmod(0o755)
    code = "import json; print(json.dumps(open('a.txt').read()))"
    place = {"repository": str(repository), "revision": "{input.branch}"}
    async with fleet(tmp_path, code, workspace=place) as running:
        assert await run(running, {"branch": "main"}) == "main"
        for branch in ("--upload-pack=touch", "nowhere", "main\n", ""):
            with pytest.raises(TaskFailed, match="revision"):
                await run(running, {"branch": branch})

    assert len(_git(repository, "worktree", "list").splitlines()) == 1
    assert not (tmp_path / "hooked").exists(), "a checkout runs nothing of the repository's"


async def test_a_workspace_is_made_again_after_a_cleaner_removed_it(tmp_path: Path) -> None:
    code = f"import json, os, shutil; print(json.dumps(os.getcwd())); shutil.rmtree({str(tmp_path / 'below')!r})"
    given = {"name": "tool", "capabilities": {"tool.run": {"command": [sys.executable, "-c", code], "attempts": 1}}}
    agent = command_agent(checked_commands(given), folder=str(tmp_path / "below"))
    async with TestFleet(agents=[agent]) as running:
        assert await run(running) != await run(running)
