"""`python -m chaos`: what it prints, what it refuses, and its exit code."""

from __future__ import annotations

import json

import pytest

from chaos.__main__ import main


def test_simulated_seed_is_reported_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--simulate", "--seed", "3", "--output", "json"])

    (report,) = json.loads(capsys.readouterr().out)
    assert (code, report["seed"], report["passed"], report["violations"]) == (0, 3, True, [])
    assert report["faults"] > 0


def test_run_with_a_mutant_passes_when_it_is_caught_and_ends_then(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--simulate", "--seed", "5", "--seeds", "3", "--mutant", "backlog_forgotten"])

    printed = capsys.readouterr().out
    assert code == 0
    assert "FAIL  seed 5" in printed
    assert "nothing lost" in printed
    assert "seed 6" not in printed


@pytest.mark.parametrize("words", [("--mutant", "forget_everything"), ("--kind", "agent.insult"), ("--store", "fdb")])
def test_what_there_is_not_is_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--simulate", *words])

    assert code in (1, 2)
    assert words[1] in capsys.readouterr().err


def test_run_of_no_seeds_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--simulate", "--seeds", "0"])
