from __future__ import annotations

import json
from importlib.metadata import EntryPoints

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


def test_without_a_control_plane_nothing_can_be_broken(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: EntryPoints())

    ran = terminal.run("chaos", "--simulate")

    assert ran.code == 1
    assert "control plane" in ran.err
