"""What the pages say in tables is what the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from fastapi.routing import APIRoute

from coditect import errors
from coditect.api.application import ROUTERS
from coditect.api.routes.events import FLEET_EVENTS
from coditect.cli.main import app
from coditect.errors import CoditectError, SetupError
from coditect.model.capability import Strategy
from coditect.operations.explain import Obstacle
from coditect.operations.scorecard import TARGETS
from coditect.registry.scoring import BEST_MATCH, FLOOR, LOAD_BALANCED, Term
from coditect.settings.declaration import Declared, Group, default_text
from coditect.settings.settings import DECLARED, SET_BY_PROGRAMS
from coditect.wire.control import Verb
from tests.docs import option_tables, settings_table, topology_table, verb_table
from tests.docs.pages import headings, section, table_rows
from tests.servers import ROOT

DOCS = ROOT / "docs"
_VARIABLE = re.compile(r"\bCODITECT_[A-Z_]*[A-Z]\b")
SETTINGS = settings_table.settings_by_variable()
TESTS_OWN = {"CODITECT_TEST_STORE"}
"""Variables that only this project's tests read."""
_OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


# HTTP


def test_every_path_of_the_api_is_documented() -> None:
    text = DOCS.joinpath("api.md").read_text("utf-8").replace("`/v1/", "`/").replace(" /v1/", " /")
    named = {path for paragraph in re.split(r"\n\n|\n(?=\|)", text) for path in _paths(paragraph)}

    routes = {_bare(route.path) for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)}
    assert routes - named == set()


def _paths(text: str) -> set[str]:
    """The paths that a row or paragraph names; `.../x` is below the path before it, or beside its end."""
    found, last = set[str](), ""
    for path in re.findall(r"`(?:[A-Z]+ )?(/[^`?]*|\.\.\.[^`?]*)[`?]", text):
        if path.startswith("/"):
            last = path
            found.add(_bare(path))
        else:
            parts = last.split("/")
            found |= {_bare("/".join(parts[:count]) + path[3:]) for count in range(2, len(parts) + 1)}
    return found


def _bare(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


# Events


def test_every_event_of_the_page_is_one_that_only_the_fleet_publishes() -> None:
    rows = table_rows(section(DOCS / "wire.md", "Events"))

    assert {word for row in rows for word in re.findall(r"`([a-z]+)\.[a-z_.]+`", row[0])} == FLEET_EVENTS


# Topology


def test_the_topology_page_is_what_the_code_declares() -> None:
    page = topology_table.PAGE.read_text(encoding="utf-8")

    assert page == topology_table.written(page), "run `python -m tests.docs.topology_table`"


def test_the_page_of_control_requests_has_every_verb_as_the_code_describes_it() -> None:
    page = verb_table.PAGE.read_text(encoding="utf-8")

    assert [verb for verb, _ in verb_table.told()] == list(Verb)
    assert page == verb_table.written(page), "run `python -m tests.docs.verb_table`"


@pytest.mark.parametrize("page", option_tables.SPECS, ids=lambda page: page.name)
def test_the_options_of_a_noun_are_those_of_its_declaration(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == option_tables.written(page), "run `python -m tests.docs.option_tables`"


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


def test_the_tables_of_settings_are_what_the_code_declares() -> None:
    page = settings_table.PAGE.read_text(encoding="utf-8")

    assert page == settings_table.written(page), "run `python -m tests.docs.settings_table`"


def test_a_user_meets_ten_settings() -> None:
    groups = [setting.group for setting in SETTINGS.values()]

    assert groups.count(Group.USER) == 10
    assert len(groups) <= 60


@pytest.mark.parametrize("variable", [name for name, setting in SETTINGS.items() if setting.kind.high is not None])
def test_a_range_holds_and_its_error_names_the_variable(variable: str) -> None:
    kind = SETTINGS[variable].kind
    assert kind.low is not None
    assert kind.high is not None
    for inside in (kind.low, kind.high):
        kind.parse(variable, f"{inside:.10g}")
    for outside in (kind.low - 1 if kind.low >= 1 else kind.low - 0.01, kind.high + 1):
        with pytest.raises(SetupError) as refused:
            kind.parse(variable, f"{outside:.10g}")
        assert refused.value.facts["variable"] == variable


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
def test_a_default_is_a_value_that_the_setting_takes(kind: type[Declared]) -> None:
    for name, setting in kind.variables():
        default = getattr(kind.read({}), name)
        if default is not None:
            text = "" if default is False else default_text(default)
            assert getattr(kind.read({setting.variable: text}), name) == default


def test_an_option_in_place_of_a_setting_has_its_range() -> None:
    found = dict(_options_for_settings(typer.main.get_command(app)))

    assert found.keys() >= {"CODITECT_SHARDS", "CODITECT_KEEP_DAYS", "CODITECT_HEALTH_PORT", "CODITECT_API_PORT"}
    for variable, bounds in found.items():
        assert bounds in ((SETTINGS[variable].kind.low, SETTINGS[variable].kind.high), (None, None)), variable


def _options_for_settings(command: Any) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    for option in getattr(command, "params", ()):
        if found := re.search(r"\[(CODITECT_\w+)\]", getattr(option, "help", None) or ""):
            yield found[1], (getattr(option, "min", None), getattr(option, "max", None))
    for inner in _below(command).values():
        yield from _options_for_settings(inner)


def test_every_variable_that_a_program_reads_is_declared() -> None:
    read = {
        name
        for package in ("coditect", "agents", "dispatcher")
        for path in (ROOT / package).rglob("*.py")
        if path.parent.name != "settings"
        for name in _strings_in(path)
    }

    assert read <= SETTINGS.keys() | SET_BY_PROGRAMS.keys()


def test_no_page_names_a_variable_that_is_not_declared() -> None:
    known = SETTINGS.keys() | SET_BY_PROGRAMS.keys() | TESTS_OWN
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        assert set(_VARIABLE.findall(page.read_text(encoding="utf-8"))) <= known, page


def _strings_in(path: Path) -> set[str]:
    """Names of variables that are whole strings of the code, not words of a text."""
    text = path.read_text(encoding="utf-8")
    nodes = ast.walk(ast.parse(text)) if "CODITECT_" in text else ()
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
            found[name] = [flag for option in options for flag in (*option.opts, *option.secondary_opts)]
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


def test_each_command_s_section_names_its_options_and_no_others() -> None:
    assert {name: options for name in COMMANDS if (options := _misnamed(name))} == {}


def _misnamed(name: str) -> set[str]:
    """Options of a command that its section does not name, and others that it does."""
    text = section(DOCS / "cli.md", name)
    own = set(COMMANDS[name])
    long = {flag for flag in own if flag.startswith("--")}
    inline, fenced = _code_of(text)
    spoken = {flag for code in inline for flag in _OPTION.findall(code)}
    calls = (part for code in fenced for part in re.findall(rf"{name} ([^|>#]*)", code))
    typed = {flag for call in calls for flag in _OPTION.findall(call)}

    return (long - {"--help"} - spoken - typed) | ((spoken | typed) - own)


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
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", makefile, re.MULTILINE)) - {"help"}
    page = ROOT / "CONTRIBUTING.md"
    documented = {
        name for row in table_rows(section(page, "Setting up")) for name in re.findall(r"`make ([a-z0-9-]+)`", row[0])
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


# The scorecard


def test_every_target_of_the_scorecard_is_documented_with_its_limit() -> None:
    documented = [row[:2] for row in table_rows(section(DOCS / "operations.md", "Scorecard"))]

    assert documented == [[name, f"{one.bound} {one.limit:g} {one.unit}"] for name, one in TARGETS.items()]


# Selection


def test_every_strategy_is_documented_alone_and_in_a_batch() -> None:
    page = DOCS / "selection.md"
    alone, batch = (table_rows(section(page, title)) for title in ("Strategies", "Many at once"))

    assert [row[0].strip("`") for row in alone[1:]] == list(Strategy)
    assert [row[0].strip("`") for row in batch] == list(Strategy)


def test_the_score_is_documented_with_the_weights_that_count() -> None:
    text = section(DOCS / "selection.md", "The score")
    documented = {row[0].strip("`"): (float(row[2]), float(row[3])) for row in table_rows(text)}

    assert documented == {term: (LOAD_BALANCED.get(term, 0), BEST_MATCH.get(term, 0)) for term in get_args(Term)}
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


def test_a_line_of_prose_is_at_most_120_characters() -> None:
    lines = [
        (page, line)
        for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
        for line in page.read_text("utf-8").splitlines()
    ]

    assert [(page.name, line) for page, line in lines if _too_long(line)] == []


def _too_long(line: str) -> bool:
    drawn = line.startswith(("|", "    n"))  # a table, or a node of a drawn workflow
    return len(line) > 120 and not drawn and not re.search(r"\S{60}", line) and "coditect " not in line
