"""What the pages say in tables is what the code has."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from coditect import errors
from coditect.cli.main import app
from coditect.errors import CoditectError, SetupError
from coditect.model.strategy import Strategy
from coditect.operations.diagnosis.explain import Obstacle
from coditect.registry.selection.scoring import BEST_MATCH, FLOOR, LOAD_BALANCED, Weights
from coditect.settings import api, settings
from coditect.settings.settings import DEFAULTS, Settings, read_settings
from coditect.wire.control import Verb
from tests.docs import topology_table, verb_table
from tests.docs.pages import headings, section, table_rows
from tests.servers import ROOT

DOCS = ROOT / "docs"
_VARIABLE = re.compile(r"\bCODITECT_[A-Z_]*[A-Z]\b")
_OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


# Topology


def test_the_topology_page_is_what_the_code_declares() -> None:
    page = topology_table.PAGE.read_text(encoding="utf-8")

    assert page == topology_table.written(page), "run `python -m tests.docs.topology_table`"


def test_the_page_of_control_requests_has_every_verb_as_the_code_describes_it() -> None:
    page = verb_table.PAGE.read_text(encoding="utf-8")

    assert [verb for verb, _ in verb_table.told()] == list(Verb)
    assert page == verb_table.written(page), "run `python -m tests.docs.verb_table`"


def test_the_topology_page_says_why_for_every_name_and_argument() -> None:
    page = topology_table.PAGE
    why = section(page, "Why: exchanges") + section(page, "Why: queues") + section(page, "Why: arguments")
    rows = table_rows(section(page, "Exchanges")) + table_rows(section(page, "Queues"))
    names = {row[0].strip("`") for row in rows}
    arguments = {name for row in rows for name in re.findall(r"`(x-[\w-]+)=", row[2])}
    told = set(re.findall(r"`([^`]+)`", why))
    told |= {f"tasks.<capability>{level}" for level in re.findall(r"`(\.p\d)`", why)}

    assert names | arguments <= told


def test_the_topology_page_names_every_retry_delay() -> None:
    words = " ".join(topology_table.PAGE.read_text(encoding="utf-8").split())

    assert f"the retry delays are {topology_table.retry_delays()}." in words


def test_the_table_of_versions_names_every_test_that_tells_versions_apart_and_only_tests_that_exist() -> None:
    rows = table_rows(section(topology_table.PAGE, "What differs between RabbitMQ 3.10 and 4.0"))
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row[-1])}

    assert named <= _tests_in("test_*.py")
    assert named >= _tests_in("test_rabbitmq_versions.py")


def _tests_in(files: str) -> set[str]:
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob(files)]
    return {name for text in texts for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)}


# Settings


def _documented_settings() -> dict[str, list[str]]:
    rows = table_rows(section(DOCS / "operations.md", "Settings"))
    return {row[0].strip("`"): row[1:] for row in rows if len(row) == 4}


def test_every_setting_is_documented_with_its_default() -> None:
    documented = _documented_settings()

    assert list(documented) == [f"CODITECT_{field.name.upper()}" for field in fields(Settings)]
    for field in fields(Settings):
        default = getattr(DEFAULTS, field.name)
        shown = documented[f"CODITECT_{field.name.upper()}"][0].strip("`")
        if default is not None:
            assert shown == (f"{default:g}" if isinstance(default, float) else str(default).replace("True", "true"))


def test_the_table_of_the_settings_module_is_that_of_the_page() -> None:
    rows = re.findall(r"^(CODITECT_\w+) {2,}(.+?) {2,}(.+)$", inspect.getdoc(settings) or "", re.MULTILINE)
    documented = _documented_settings()

    assert {(name, default) for name, default, _ in rows} == {
        (name, default.strip("`")) for name, (default, _, _) in documented.items()
    }


def test_every_setting_of_the_api_is_documented_with_its_default() -> None:
    documented = {row[0].strip("`"): row[1].strip("`") for row in table_rows(section(DOCS / "api.md", "Settings"))}
    rows = re.findall(r"^(CODITECT_\w+) {2,}(.+?) {2,}(.+)$", inspect.getdoc(api) or "", re.MULTILINE)

    assert list(documented) == [f"CODITECT_API_{field.name.upper()}" for field in fields(api.ApiSettings)]
    assert documented == {name: default for name, default, _ in rows}
    assert list(documented.values()) == [_shown(getattr(api.API_DEFAULTS, field)) for field in _api_fields()]


def _api_fields() -> list[str]:
    return [field.name for field in fields(api.ApiSettings)]


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def _ranges() -> list[tuple[str, float, float]]:
    found = ((name, re.fullmatch(r"([\d.]+) to ([\d.]+)", row[1])) for name, row in _documented_settings().items())
    return [(name, float(bounds[1]), float(bounds[2])) for name, bounds in found if bounds is not None]


@pytest.mark.parametrize(("variable", "low", "high"), _ranges())
def test_a_documented_range_is_the_one_that_holds(variable: str, low: float, high: float, tmp_path: Path) -> None:
    for inside in (low, high):
        read_settings({variable: f"{inside:g}"}, folder=tmp_path)
    for outside in (low - 1 if low >= 1 else low - 0.01, high + 1):
        with pytest.raises(SetupError) as refused:
            read_settings({variable: f"{outside:.10g}"}, folder=tmp_path)
        assert refused.value.facts["variable"] == variable


def test_every_variable_that_a_program_reads_is_documented() -> None:
    pages = (section(DOCS / "operations.md", "Settings"), section(DOCS / "api.md", "Settings"))
    documented = set(_VARIABLE.findall("".join(pages)))
    read = {
        name
        for package in ("coditect", "agents", "dispatcher")
        for path in (ROOT / package).rglob("*.py")
        for name in _strings_in(path)
    }

    assert read <= documented


def _strings_in(path: Path) -> set[str]:
    """Names of variables that are whole strings of the code, not words of a text."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    strings = (node.value for node in nodes if isinstance(node, ast.Constant))
    return {text for text in strings if isinstance(text, str) and _VARIABLE.fullmatch(text)}


# The command line


def _commands() -> dict[str, list[str]]:
    """The spellings of every command's options."""
    found: dict[str, list[str]] = {}
    to_see: list[tuple[str, Any]] = [("coditect", typer.main.get_command(app))]
    while to_see:
        name, command = to_see.pop()
        subcommands = _below(command)
        if not subcommands or getattr(command, "invoke_without_command", False):
            options = [one for one in command.params if one.param_type_name == "option"]
            found[name] = [flag for option in options for flag in option.opts]
        to_see += [(f"{name} {verb}", sub) for verb, sub in subcommands.items()]
    return found


def _below(command: Any) -> dict[str, Any]:
    """A group's commands, without those of earlier names; the root imports each when it is asked for."""
    context = typer.Context(command)
    names = command.list_commands(context) if hasattr(command, "list_commands") else ()
    found = {name: command.get_command(context, name) for name in names}
    return {name: one for name, one in found.items() if not one.hidden}


COMMANDS = _commands()


def test_every_command_has_its_section_and_no_other() -> None:
    assert {title for title in headings(DOCS / "cli.md") if title.startswith("coditect ")} == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_s_section_names_its_options_and_no_others(name: str) -> None:
    text = section(DOCS / "cli.md", name)
    own = set(COMMANDS[name])
    long = {flag for flag in own if flag.startswith("--")}
    inline, fenced = _code_of(text)
    spoken = {flag for code in inline for flag in _OPTION.findall(code)}
    calls = (part for code in fenced for part in re.findall(rf"{name} ([^|>#]*)", code))
    typed = {flag for call in calls for flag in _OPTION.findall(call)}

    assert long - {"--help"} <= spoken | typed
    assert spoken | typed <= own


def _code_of(text: str) -> tuple[list[str], list[str]]:
    """The inline code of a section, and the lines of its blocks."""
    inline: list[str] = []
    fenced: list[str] = []
    within = False
    for line in text.splitlines():
        if line.startswith("```"):
            within = not within
        elif within:
            fenced.append(line)
        else:
            inline += re.findall(r"`([^`]+)`", line)
    return inline, fenced


# Targets of the Makefile


def test_every_target_is_documented_and_no_other() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE)) - {"help"}
    page = ROOT / "CONTRIBUTING.md"
    documented = {
        name for row in table_rows(section(page, "Setting up")) for name in re.findall(r"`make ([a-z-]+)`", row[0])
    }

    assert documented == targets


# Errors


def _concrete_errors() -> dict[str, type[CoditectError]]:
    defined = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {
        name: value
        for name, value in defined.items()
        if issubclass(value, CoditectError) and (not value.__subclasses__() or name == "InvalidTask")
    }


def test_every_error_is_documented_with_what_it_means_for_the_caller() -> None:
    documented = {row[0].strip("`"): (row[1], row[3]) for row in table_rows(section(DOCS / "client.md", "Errors"))}

    assert documented == {
        name: ("yes" if error.retryable else "no", str(error.exit_code)) for name, error in _concrete_errors().items()
    }


# Selection


def test_every_strategy_is_documented_alone_and_in_a_batch() -> None:
    page = DOCS / "selection.md"
    alone, batch = (table_rows(section(page, title)) for title in ("Strategies", "Many at once"))

    assert [row[0].strip("`") for row in alone[1:]] == list(Strategy)
    assert [row[0].strip("`") for row in batch] == list(Strategy)


def test_the_score_is_documented_with_the_weights_that_count() -> None:
    text = section(DOCS / "selection.md", "The score")
    documented = {row[0].strip("`"): (float(row[2]), float(row[3])) for row in table_rows(text)}

    assert documented == {
        term.name: (getattr(LOAD_BALANCED, term.name), getattr(BEST_MATCH, term.name)) for term in fields(Weights)
    }
    assert "score = " + " · ".join(f"{name}^w" for name in documented) in text
    assert f"{FLOOR} to 1" in text


def test_every_obstacle_is_documented() -> None:
    rows = table_rows(section(DOCS / "selection.md", "Why no agent takes it"))

    assert [row[0].strip("`") for row in rows] == list(Obstacle)


# Words


def test_the_glossary_has_few_words_each_once_and_in_order() -> None:
    users, contributors = (
        [row[0] for row in table_rows(section(DOCS / "glossary.md", title))]
        for title in ("For users", "For contributors")
    )

    assert 0 < len(users) <= 10
    assert 0 < len(contributors) <= 30
    assert (users, contributors) == (sorted(users), sorted(contributors))
    assert len({*users, *contributors}) == len(users) + len(contributors)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_a_line_of_prose_is_at_most_120_characters(page: Path) -> None:
    long = [number for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1) if _too_long(line)]

    assert not long


def _too_long(line: str) -> bool:
    drawn = line.startswith(("|", "    n"))  # a table, or a node of a drawn workflow
    return len(line) > 120 and not drawn and not re.search(r"\S{60}", line) and "coditect " not in line
