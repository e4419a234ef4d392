"""Every mutant can be made, is in the processes that it is put into, and in no other."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from chaos.checks.invariants import judge
from chaos.mutants.__main__ import HuntProgress, fingerprint
from chaos.mutants.hunt import hunt
from chaos.mutants.mutant import Mutant
from chaos.mutants.table import ALL, MUTANTS, read_mutant
from chaos.testbed import command
from coditect.errors import SetupError


def source_of(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text()


def test_mutants_have_names_of_their_own_and_invariants() -> None:
    assert len(MUTANTS) == len(ALL)

    assert {one.caught_by for one in MUTANTS.values()} <= {one.invariant for one in judge([])}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda one: one.name)
def test_words_that_a_mutant_replaces_stand_once_in_the_module(mutant: Mutant) -> None:
    source = source_of(mutant.module)

    mutated = mutant.applied(source)

    assert mutated != source
    compile(mutated, mutant.module, "exec", dont_inherit=True)


@pytest.mark.proof
async def test_mutant_is_caught_by_its_invariant_at_its_seed() -> None:
    mutant = MUTANTS["confirmed_unsent"]

    catch = await hunt(mutant, most_seeds=1)

    assert (catch.by, catch.where) == (mutant.caught_by, f"seed {mutant.seed}")


@pytest.mark.proof
async def test_mutant_that_breaks_other_promises_only_is_not_caught() -> None:
    mutant = replace(MUTANTS["confirmed_unsent"], caught_by="registry true")

    catch = await hunt(mutant, most_seeds=1)

    assert (catch.by, "outbox kept" in catch.where) == ("", True)


def test_what_was_caught_is_not_hunted_again_until_the_code_changes(tmp_path: Path) -> None:
    file = tmp_path / "caught"
    HuntProgress(file, "code").add("one")
    HuntProgress(file, "code").add("other")

    assert HuntProgress(file, "code").caught == {"one", "other"}
    assert HuntProgress(file, "changed").caught == set()
    assert HuntProgress(file, "code").caught == set()


@pytest.mark.parametrize("name", ["module.py", "script.lua"])
def test_code_is_told_from_another_by_each_of_its_bytes(tmp_path: Path, name: str) -> None:
    code = tmp_path / "coditect" / name
    code.parent.mkdir()
    code.write_text("one = 1\n")
    before = fingerprint(tmp_path)

    code.write_text("one = 2\n")

    assert fingerprint(tmp_path) != before


def test_unknown_mutant_is_refused_and_without_one_the_module_runs_as_it_is() -> None:
    with pytest.raises(SetupError, match="no such mutant"):
        read_mutant("forget_everything")
    with pytest.raises(SetupError, match="do not stand in the module once"):
        MUTANTS["skip_fence"].applied("something else")

    assert command("", ("dispatcher",)) == [sys.executable, "-m", "dispatcher"]
