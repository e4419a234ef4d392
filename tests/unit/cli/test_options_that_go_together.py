"""Options that only add to another one are refused without it, rather than ignored."""

from __future__ import annotations

import shlex

import pytest

from tests.unit.cli.scene import Terminal

LONE = {
    "task get some-task --limit 5": "--limit does something with --why-not only",
    "task get some-task --capability code.review": "--capability does something with --trace or --why-not only",
    "capability get code.review --priority p0": "--priority does something with --why-not only",
    "capability get code.review --tag gpu": "--tag does something with --why-not only",
    "capability get code.review --input 1": "--input does something with --why-not only",
    "workflow check flow.yaml --states states.json": "--states does something with --graph only",
    "workflow check flow.yaml --live some-run": "--live does something with --graph only",
    "workflow start flow.yaml --with a=1": "--with does something with --pattern only",
    "workflow start flow.yaml --plans 2": "--plans does something with --goal only",
    "workflow start flow.yaml --tokens 200": "--tokens does something with --goal only",
    "state get team plan --count 2": "--count does something with --watch only",
    "doctor --port 8080": "--port does something with --health only",
    "doctor --prove": "--prove does something with --scorecard only",
    "dead redrive --all --input 1": "--input does something with --node only",
}


@pytest.mark.parametrize(("command", "refusal"), LONE.items())
def test_an_option_is_refused_without_the_one_that_it_adds_to(terminal: Terminal, command: str, refusal: str) -> None:
    ran = terminal.run(*shlex.split(command))

    assert ran.code == 2
    assert refusal in ran.err
