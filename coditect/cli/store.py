"""`coditect store`: copies a control plane's ledger on SQLite into a file, and restores it from one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from coditect.cli.dispatcher import installed
from coditect.cli.terminal.output import say
from coditect.settings.settings import Settings, read_settings

app = typer.Typer(no_args_is_help=True)

StoreOption = Annotated[str | None, typer.Option("--store", help="The ledger: sqlite:PATH. [CODITECT_STORE_URL]")]


@app.command("backup")
def back_up(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new file for the copy.")], store: StoreOption = None
) -> None:
    """Copy the ledger at this instant into a new file. The dispatcher keeps running.

    \b
    Example: coditect store backup backups/monday.db
    """
    settings = _settings(store)
    installed().back_up(settings, target)
    say(f"{settings.store_url} was copied to {target}.")


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `coditect store backup` made.")],
    store: StoreOption = None,
) -> None:
    """Put a backup in the ledger's place while no dispatcher runs. The former file is kept beside it.

    What was begun since the copy was made is forgotten: late results of it are refused, and what the copy has as
    published or running is published again when a dispatcher starts.

    \b
    Example: coditect store restore backups/monday.db
    """
    settings = _settings(store)
    kept = installed().restore(settings, source)
    say(f"{settings.store_url} was restored from {source}.")
    if kept is not None:
        say(f"What it was before is in {kept}.")


def _settings(store: str | None) -> Settings:
    settings = read_settings()
    return settings if store is None else replace(settings, store_url=store)
