"""Commands that pages, help texts and errors name exist, with their options."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import typer

from coditect.cli.main import app
from coditect.errors import install_command
from tests.docs.pages import pages
from tests.servers import ROOT

_CALL = re.compile(r"(?:^ *|`|: )coditect((?: +(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s`'\"|;&<>()\\]+))+)", re.MULTILINE)
_CAPABILITY = re.compile(
    r"(?:--capability|-c|capability (?:get|forget)|task submit|What to do, e\.g\.|joined by dots, such as)"
    r"[ =]([a-z][\w-]*(?:\.[a-z][\w-]*)+)"
)
_DECLARED = re.compile(r"""\.capability\(\s*"([\w.-]+)"|^name: ([\w.-]+)$""", re.MULTILINE)
_TREE = typer.main.get_command(app)


@cache
def _found(command: Any, name: str) -> Any:
    return command.get_command(None, name)


def test_commands_named_in_texts_exist_with_their_options() -> None:
    sources = [file for name in ("coditect", "dispatcher", "agents") for file in (ROOT / name).rglob("*.py")]

    wrong = [fault for file in [*pages(), *sources] for fault in _faults(file)]

    assert not wrong


def test_capabilities_named_in_commands_are_of_the_reference_fleet_an_example_or_a_generated_project() -> None:
    rooms = ("agents", "examples", "coditect/cli/local/starter")
    agents = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".md")]
    declared = {"".join(names) for agent in agents for names in _DECLARED.findall(agent.read_text(encoding="utf-8"))}
    texts = [path for name in ("coditect", "dispatcher", "agents") for path in (ROOT / name).rglob("*.[pj][ys]")]
    lines = [line for text in texts for line in text.read_text(encoding="utf-8").splitlines()]

    named = {name for line in lines if "coditect agent run" not in line for name in _CAPABILITY.findall(line)}

    assert {"hello.greet", "code.review"} <= named
    assert named - declared == set()


def test_no_text_installs_from_an_index_and_the_page_of_extras_has_the_command_of_the_errors() -> None:
    rooms = ("coditect", "dispatcher", "agents", "examples", "deploy", "k8s", "scripts")
    files = [file for room in rooms for file in (ROOT / room).rglob("*") if file.is_file() and file.suffix != ".pyc"]
    texts = {file: file.read_text(encoding="utf-8", errors="ignore") for file in [*pages(), *files]}

    assert [file for file, text in texts.items() if re.search(r"pip install ['\"]?coditect\b(?!-)", text)] == []
    assert install_command("api,dispatcher") in texts[ROOT / "docs" / "operations.md"]


def test_a_command_and_an_option_that_do_not_exist_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`coditect task show` and `coditect task get ID --wrong`,\n    coditect nothing\ncoditect up --detach\n"
    )

    assert [fault.partition(": ")[2] for fault in _faults(page)] == ["task show", "--wrong", "nothing"]


def _faults(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    return [f"{file}: {fault}" for call in _CALL.findall(text) for fault in _unknown(call)]


def _unknown(call: str) -> list[str]:
    """Return the subcommand or the options in the words behind `coditect` that do not exist."""
    words = [word.strip("`,.:*[]") for word in re.sub(r"'[^']*'|\"[^\"]*\"", "TEXT", call).split()]
    command: Any = _TREE
    path: list[str] = []
    while hasattr(command, "get_command") and words and re.fullmatch("[a-z][a-z-]*", words[0]):
        found = _found(command, words[0])
        if found is None:
            return [] if path and command.invoke_without_command else [" ".join([*path, words[0]])]
        command = found
        path.append(words.pop(0))
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    options = [word.partition("=")[0] for word in words if re.fullmatch(r"-[a-zA-Z]|--[a-z][a-z-]*(=.*)?", word)]
    return [option for option in options if option not in known | {"-h", "--help", "--version"}]
