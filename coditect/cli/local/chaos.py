"""`coditect chaos`: break a private fleet on purpose, record what happens, and check that every promise was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import typer

from coditect.cli.dispatcher import entry_point
from coditect.cli.terminal.output import Output, OutputOption, render, say

GROUP = "coditect.chaos"
"""The group of Python entry points under which a control plane offers its chaos program."""
CLONE = "run it in a clone of the project, after `make setup`: a wheel leaves it out"
FOLDER = Path(".coditect") / "chaos"


class Store(StrEnum):
    """The kind of store that the dispatchers of a chaos run use."""

    SQLITE = "sqlite"
    FDB = "fdb"


class Report(Protocol):
    """The result of the chaos run with one seed."""

    @property
    def passed(self) -> bool:
        """Tell whether the run kept every promise, under enough faults and cases to prove something."""

    @property
    def caught(self) -> bool:
        """Tell whether the checker that is meant to find the run's mutant, a deliberate mistake, has found it."""

    def lines(self) -> list[str]:
        """Return the result of the run as lines of text for a person."""

    def as_json(self) -> dict[str, Any]:
        """Return the result of the run as JSON values for `--output json`."""


app = typer.Typer()


@app.command("chaos")
def run_chaos(
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides what is broken, and when.")] = 1,
    minutes: Annotated[float, typer.Option("--minutes", min=0.05, help="How long things are broken.")] = 5.0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="So many seeds, one after the other.")] = 1,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only these faults, such as broker.wipe; can be repeated.")
    ] = None,
    mutant: Annotated[
        str, typer.Option("--mutant", help="Put a mutant into every process: the run passes when it is caught.")
    ] = "",
    simulate: Annotated[
        bool, typer.Option("--simulate", help="In this process, in virtual time: hundreds of seeds a minute.")
    ] = False,
    store: Annotated[
        Store, typer.Option("--store", help="With fdb, processes of FoundationDB are broken, too. [CODITECT_FDBSERVER]")
    ] = Store.SQLITE,
    folder: Annotated[Path, typer.Option("--folder", help="Logs and histories; emptied first.")] = FOLDER,
    output: OutputOption = Output.TABLE,
) -> None:
    """Break a private fleet by a seed (kill -9, stop, wipe, restart) and check every promise on its history.

    Starts its own RabbitMQ, Redis, store, dispatchers and agents, and stops them. Exits 1 when a promise was broken, or
    when the run proves nothing: less than a fault in 2 s, a kind of fault that never hit work in flight, or, in a
    minute of all faults, a promise that there was nothing to check of.

    \b
    Example: coditect chaos --seed 7 --minutes 5
    """
    found = entry_point(GROUP, "An installed package does not break itself", fix=CLONE)
    rehearse = cast(Callable[..., Iterable[Report]], found)
    reports: list[Report] = []
    for report in rehearse(
        seeds=range(seed, seed + seeds),
        seconds=60 * minutes,
        folder=folder.absolute(),
        kinds=kind or (),
        mutant=mutant,
        simulate=simulate,
        store=store.value,
        say=say,
    ):
        reports.append(report)
        if output is Output.TABLE:
            typer.echo("\n".join(report.lines()))
        if report.caught:
            break
    if output is not Output.TABLE:
        render(output, [report.as_json() for report in reports])
    caught = reports[-1].caught
    if mutant:
        say("the mutant was caught" if caught else "the mutant was not caught")
    if not (caught if mutant else all(report.passed for report in reports)):
        raise typer.Exit(1)
