from __future__ import annotations

import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from tests.unit.cli.scene import Terminal


def test_simulated_seed_is_reported_for_programs(terminal: Terminal) -> None:
    ran = terminal.run("chaos", "--simulate", "--seed", "3", "--output", "json")

    (report,) = json.loads(ran.out)
    assert (ran.code, report["seed"], report["passed"], report["violations"]) == (0, 3, True, [])
    assert report["faults"] > 0


def test_run_with_a_mutant_passes_when_it_is_caught_and_ends_then(terminal: Terminal) -> None:
    ran = terminal.run("chaos", "--simulate", "--seed", "3", "--seeds", "3", "--mutant", "drop_outbox_row")

    assert ran.code == 0
    assert "FAIL  seed 3" in ran.out
    assert "outbox kept" in ran.out
    assert "seed 4" not in ran.out


@pytest.mark.parametrize("words", [("--mutant", "forget_everything"), ("--kind", "agent.insult"), ("--store", "fdb")])
def test_what_there_is_not_is_refused(terminal: Terminal, words: tuple[str, str]) -> None:
    ran = terminal.run("chaos", "--simulate", *words)

    assert ran.code in (1, 2)
    assert words[1] in ran.err


@pytest.mark.parametrize(
    "offered", [EntryPoints(), EntryPoints([EntryPoint("x", "dispatcher.left_out.program:x", "coditect.chaos")])]
)
def test_where_chaos_is_not_installed_it_says_where_it_is(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, offered: EntryPoints
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: offered)

    ran = terminal.run("chaos", "--simulate")

    assert ran.code == 1
    assert "in a clone of the project" in ran.err
