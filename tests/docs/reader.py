"""A reader who follows one page: a folder of their own, terminals left open, one block after the other."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from coditect.local.servers import free_ports
from coditect.settings.settings import API_DEFAULTS
from tests.docs.pages import Block, Mark
from tests.servers import ROOT, STARTUP, Servers

BLOCK_SECONDS = 150.0
READY_SECONDS = 150.0
END_SECONDS = 60.0
POLL_SECONDS = 0.02
SETTLED_SECONDS = 1.0
"""How long a background command that cannot say that it is ready is given."""

_SAY_WHEN_READY = ("coditect agent run", "coditect dispatcher run", "coditect api", "coditect event tail")
_COUNTS = "--count"
"""The option of a command that ends when it has seen so much."""
_API_PORT = f":{API_DEFAULTS.port}"
"""As the pages write it: each reader has an API of their own, at another port."""
ALONE = {
    "PYTHONPATH": str(STARTUP),
    "TESTS_OF_THE_DOCUMENTATION": "1",
    "NO_COLOR": "1",
    "COLUMNS": "120",
    "PIP_NO_INDEX": "1",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "127.0.0.1,localhost",
}
"""The environment of all that a page runs, which keeps it on this machine."""
_SHELL = ("bash", "-euo", "pipefail", "-c")


@dataclass(slots=True)
class _Terminal:
    """A command left running."""

    block: Block
    command: str
    process: subprocess.Popen[bytes]
    log: Path


@dataclass(slots=True)
class Reader:
    """Does what a page says, in order."""

    folder: Path
    servers: Servers
    commands: Path
    """Where the ``coditect`` and the ``block`` lie that are forked, and so start quickly."""
    printed: str = ""
    """What the last block that ran wrote to stdout."""
    _terminals: list[_Terminal] = field(default_factory=list)
    _api_port: int = 0

    def __post_init__(self) -> None:
        (self._api_port,) = free_ports(1)
        for name in ("agents", "examples"):
            shutil.copytree(ROOT / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}
        return kept | {
            **ALONE,
            "PATH": os.pathsep.join([str(self.commands), str(Path(sys.executable).parent), kept.get("PATH", "")]),
            "HOME": str(self.folder),
            "CODITECT_AMQP_URL": self.servers.amqp_url,
            "CODITECT_REDIS_URL": self.servers.redis_url,
            "CODITECT_API_PORT": str(self._api_port),
        }

    def follow(self, block: Block) -> None:
        """Does what the block asks for; fails with its place and output when that does not work."""
        match block.mark:
            case Mark.NOT_RUN:
                assert block.remark, f"{block.place}: say why it is not run"
            case Mark.FILE:
                self._write(block)
            case Mark.BACKGROUND:
                for line in block.text.splitlines():
                    if line and not line.startswith("#"):
                        self._open_terminal(block, line)
            case Mark.PRINTS:
                assert matches(block.text, self.printed), f"{block.place}: really printed was\n{self.printed}"
            case Mark.NONE if block.runs:
                self.printed = self._run(block)

    def _write(self, block: Block) -> None:
        path = self.folder / block.remark
        if block.remark.startswith("examples/"):
            assert block.text == path.read_text(encoding="utf-8"), f"{block.place} is not {block.remark}"
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        if block.language == "python":
            compile(block.text, block.place, "exec")

    def _run(self, block: Block) -> str:
        if block.language == "bash":
            return self._call(block, [*_SHELL, self._own(block.text)])
        script = self.folder / f"block_{block.line}.py"
        script.write_text(self._own(block.text), encoding="utf-8")
        return self._call(block, [str(self.commands / "block"), str(script)])

    def _call(self, block: Block, argv: list[str]) -> str:
        with subprocess.Popen(
            argv,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            encoding="utf-8",
        ) as process:
            try:
                printed, errors = process.communicate(timeout=BLOCK_SECONDS)
            except subprocess.TimeoutExpired:
                _signal(process.pid, signal.SIGKILL)
                raise AssertionError(f"{block.place} took longer than {BLOCK_SECONDS:g} s") from None
        assert process.returncode == 0, f"{block.place} ended with {process.returncode}\n{printed}\n{errors}"
        return printed.replace(f":{self._api_port}", _API_PORT)

    def _own(self, text: str) -> str:
        return text.replace(_API_PORT, f":{self._api_port}")

    def _open_terminal(self, block: Block, command: str) -> None:
        number = len(self._terminals)
        ready = self.folder / f"terminal-{number}.ready"
        log = self.folder / f"terminal-{number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_SHELL, self._own(command)],
                cwd=self.folder,
                env=self._environment | {"CODITECT_READY_FILE": str(ready)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        terminal = _Terminal(block, command, process, log)
        self._terminals.append(terminal)
        says_when_ready = any(words in command for words in _SAY_WHEN_READY)
        deadline = time.monotonic() + (READY_SECONDS if says_when_ready else SETTLED_SECONDS)
        while not ready.exists() and time.monotonic() < deadline:
            assert process.poll() in (None, 0), _complaint(terminal)
            time.sleep(POLL_SECONDS)
        assert ready.exists() or not says_when_ready, _complaint(terminal)

    def leave(self) -> None:
        """Closes every terminal, and what was brought up; fails when a command in it had failed.

        A command that ends by itself must have ended.
        """
        failed = []
        for terminal in self._terminals:
            if _COUNTS in terminal.command:
                with suppress(subprocess.TimeoutExpired):
                    terminal.process.wait(END_SECONDS)
            code = terminal.process.poll()
            if code or (code is None and _COUNTS in terminal.command):
                failed.append(_complaint(terminal))
        for terminal in self._terminals:
            _signal(terminal.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        for terminal in self._terminals:
            while _lives(terminal.process) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            if _lives(terminal.process):
                failed.append(f"did not end in time: {_complaint(terminal)}")
            _signal(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()
        if (self.folder / ".coditect" / "up.json").exists():  # the page broke off before its own `coditect down`
            subprocess.run(["coditect", "down"], cwd=self.folder, env=self._environment, timeout=60, check=False)
        assert not failed, "\n".join(failed)


def matches(expected: str, printed: str) -> bool:
    """Whether the text is what was expected, `...` standing for anything."""
    pattern = ".*?".join(re.escape(part) for part in _squeeze(expected).split("..."))
    return re.fullmatch(pattern, _squeeze(printed), re.DOTALL) is not None


def _squeeze(text: str) -> str:
    """Without the spaces at the ends of lines and the empty lines around."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _complaint(terminal: _Terminal) -> str:
    code = terminal.process.poll()
    return f"{terminal.block.place} in the background (exit code {code}):\n{terminal.log.read_text(errors='replace')}"


def _lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether anything of its group still runs."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
