"""The reader of the documentation notices what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import Block, Mark
from tests.docs.reader import Reader, matches
from tests.servers import ROOT, Servers
from tests.support import children_with

PAGE = ROOT / "README.md"


@pytest.fixture
def reader(tmp_path: Path, commands: Path) -> Reader:
    return Reader(tmp_path, Servers("amqp://127.0.0.1:1", "redis://127.0.0.1:1"), commands)


def _block(language: str, text: str, mark: Mark = Mark.NONE, remark: str = "") -> Block:
    return Block(PAGE, 1, language, text, mark, remark)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("bash", "true\nfalse\ntrue\n"),
        ("bash", "echo $undefined\n"),
        ("bash", "false | true\n"),
        ("python", "import asyncio\nawait asyncio.sleep(0)\nassert False\n"),
    ],
)
def test_a_block_that_fails_is_a_failure(reader: Reader, language: str, text: str) -> None:
    with pytest.raises(AssertionError, match=r"README\.md:1 ended with 1"):
        reader.follow(_block(language, text))


def test_a_killed_block_is_a_failure_of_that_signal(reader: Reader) -> None:
    with pytest.raises(AssertionError, match=r"README\.md:1 ended with -9"):
        reader.follow(_block("python", "import os\nos.kill(os.getpid(), 9)\n"))


def test_an_import_in_no_module_fails_as_anywhere(reader: Reader) -> None:
    text = "try:\n    exec('import opentelemetry_x', {})\nexcept ModuleNotFoundError as error:\n    print(error)\n"

    reader.follow(_block("python", text))

    reader.follow(_block("text", "No module named 'opentelemetry_x'\n", Mark.PRINTS))


@pytest.mark.servers
def test_the_installed_program_starts_by_itself(tmp_path: Path, servers: Servers) -> None:
    """Nothing is imported before it, and redis-py sees OpenTelemetry where that is installed."""
    program = Path(sys.executable).with_name("coditect")
    alone = {"PYTHONPATH": "", "PATH": os.environ["PATH"], **servers.environment}

    done = subprocess.run(
        [program, "agent", "list"], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_another_output_than_shown_is_a_failure(reader: Reader) -> None:
    reader.follow(_block("python", "print('one')\n"))

    reader.follow(_block("text", "one\n", Mark.PRINTS))
    with pytest.raises(AssertionError, match="really printed was\none"):
        reader.follow(_block("text", "two\n", Mark.PRINTS))


def test_a_file_of_the_page_is_there_for_the_blocks_behind_it(reader: Reader) -> None:
    reader.follow(_block("python", "ANSWER = 42\n", Mark.FILE, "answers.py"))

    reader.follow(_block("python", "import answers\n\nassert answers.ANSWER == 42\n"))


def test_an_example_that_differs_from_its_file_is_a_failure(reader: Reader) -> None:
    with pytest.raises(AssertionError, match=r"is not examples/notes\.py"):
        reader.follow(_block("python", "ANSWER = 42\n", Mark.FILE, "examples/notes.py"))


def test_a_block_that_is_not_run_says_why(reader: Reader) -> None:
    reader.follow(_block("bash", "false\n", Mark.NOT_RUN, "it would fail"))

    with pytest.raises(AssertionError, match="say why"):
        reader.follow(_block("bash", "false\n", Mark.NOT_RUN))


def test_a_background_command_that_fails_is_a_failure(reader: Reader) -> None:
    with pytest.raises(AssertionError, match=r"exit code 1"):
        reader.follow(_block("bash", "false\n", Mark.BACKGROUND))

    with pytest.raises(AssertionError, match=r"exit code 1"):
        reader.leave()


def test_a_background_command_ends_with_the_page(reader: Reader) -> None:
    reader.follow(_block("bash", "exec sleep 1000.25\n", Mark.BACKGROUND))
    started = children_with("1000.25")

    reader.leave()

    assert started and not children_with("1000.25")


@pytest.mark.parametrize(
    "text",
    [
        "import socket\nsocket.create_connection(('192.0.2.1', 80), 1)\n",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 80))\n",
        "import socket\nsocket.getaddrinfo('example.invalid', 80)\n",
        "import asyncio\nawait asyncio.open_connection('192.0.2.1', 80)\n",
    ],
)
def test_a_block_cannot_leave_the_machine(reader: Reader, text: str) -> None:
    with pytest.raises(AssertionError, match="PermissionError: A block of the documentation"):
        reader.follow(_block("python", text))


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("one\ntwo", "one  \ntwo\n", True),
        ("one ... three", "one and two and three", True),
        ("one ... three", "one and\ntwo and three", True),
        ("one", "one two", False),
        ("a.c", "abc", False),
    ],
)
def test_an_ellipsis_stands_for_anything(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
