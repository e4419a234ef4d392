"""`coditect dispatcher`: run the control plane, show its state, back its ledger up and restore it.

What only the other commands need is imported by them: a dispatcher keeps in memory what its command imports.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

import typer

from coditect.cli.connections import connections
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.options import ShownAnswer, checked, presented
from coditect.cli.terminal.output import TableView, say
from coditect.errors import ControlPlaneRequired, install_command
from coditect.model.duration import seconds
from coditect.settings.settings import Settings, read_settings

if TYPE_CHECKING:
    from coditect.operations.status import ClusterStatus, DispatcherStatus

GROUP = "coditect.control_plane"
"""The group of Python entry points under which a control plane offers its program."""
INSTALL = install_command("dispatcher")
DAY_SECONDS = 86_400

app = typer.Typer(no_args_is_help=True)


class ControlPlaneProgram(Protocol):
    """The interface that the entry point of an installed control plane offers to the command line."""

    def main(self, settings: Settings) -> int:
        """Run the control plane until SIGTERM or SIGINT, and return the exit code."""

    def back_up(self, settings: Settings, target: Path) -> None:
        """Copy the ledger's SQLite store into a new file; dispatchers may use the store meanwhile."""

    def restore(self, settings: Settings, source: Path) -> Path | None:
        """Put a backup in the SQLite store's place; return the path of the former file, kept beside it, or None."""


@app.command("run")
def run_dispatcher(
    store: Annotated[
        str | None, typer.Option(help="The ledger: sqlite:PATH, or fdb:CLUSTER_FILE. [CODITECT_STORE_URL]")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, max=1_024, help="Shards of a new ledger. [CODITECT_SHARDS]")
    ] = None,
    retention: Annotated[
        str | None,
        typer.Option(callback=checked, help="How long ended workflows stay, such as 30d. [CODITECT_KEEP_DAYS]"),
    ] = None,
    health_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="/livez and /readyz; 0 takes any. [CODITECT_HEALTH_PORT]")
    ] = None,
) -> None:
    """Run a dispatcher until SIGTERM or SIGINT. At its end it hands its shards of the control plane over.

    Any number of them share the work of a FoundationDB store. A SQLite file has one owner: another dispatcher stands
    by, and takes over when the owner has ended. Everything else is taken from the settings in the environment, and for
    FoundationDB over TLS from FoundationDB's own variables, FDB_TLS_*.

    \b
    Example: coditect dispatcher run --store sqlite:ledger.db
    """
    keep_days = None if retention is None else seconds(retention) / DAY_SECONDS
    options: dict[str, Any] = {"store_url": store, "shards": shards, "keep_days": keep_days, "health_port": health_port}
    settings = replace(read_settings(), **{name: value for name, value in options.items() if value is not None})
    say_guesses(AMQP, REDIS)
    raise typer.Exit(installed().main(settings))


@app.command("status")
@presented
async def show_status(context: typer.Context) -> ShownAnswer:
    """Show the control plane's dispatchers and shards. Each dispatcher has its counts of refused work.

    \b
    Since a dispatcher began: REFUSED commits that came too late, since the shard was another's by then; LATE
    results that a fence refused; STRANGE results of unknown nodes; DROPPED tasks without a queue that came
    too fast to be answered. NEWER: the nodes of its shards that are left alone, since a newer dispatcher wrote
    them. A dispatcher that does not answer, or has no shard, has none.

    \b
    Example: coditect dispatcher status
    """
    from coditect.operations.status import cluster_status

    async with connections(context).broker() as broker:
        return _status(await cluster_status(broker))


def _status(stands: ClusterStatus) -> ShownAnswer:
    from coditect.operations.status import COUNTS

    members = stands.dispatchers
    dispatchers = [{"owner": member.owner, "shards": member.shards} | _counts(member) for member in members]
    columns = ("dispatcher", "shards", *(name.replace("_", " ") for name in COUNTS))
    owners = TableView(columns, [(member.owner, len(member.shards), *_counts(member).values()) for member in members])
    rows = [(shard.shard, shard.owner, shard.epoch, shard.workflows, shard.under_way) for shard in stands.shards]
    shards = TableView(("shard", "owner", "epoch", "workflows", "under way"), rows)
    return ShownAnswer({"dispatchers": dispatchers, "shards": stands.shards}, (owners, "", shards))


def _counts(dispatcher: DispatcherStatus) -> dict[str, int | None]:
    from coditect.operations.status import COUNTS

    return dict.fromkeys(COUNTS) if dispatcher.counts is None else asdict(dispatcher.counts)


def installed() -> ControlPlaneProgram:
    """Load and return the installed control plane's program: it runs a dispatcher, backs up and restores the store.

    Raises:
        ControlPlaneRequired: when no control plane is installed, or it cannot be loaded.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        try:
            return cast(ControlPlaneProgram, entry.load())
        except ImportError as error:
            raise ControlPlaneRequired(
                "The installed control plane cannot be loaded", reason=str(error), fix=INSTALL
            ) from error
    raise ControlPlaneRequired("No control plane is installed that could be run", fix=INSTALL)


StoreOption = Annotated[str | None, typer.Option("--store", help="The ledger: sqlite:PATH. [CODITECT_STORE_URL]")]


@app.command("backup")
def back_up(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new file for the copy.")], store: StoreOption = None
) -> None:
    """Copy the ledger at this instant into a new file. The dispatcher keeps running.

    \b
    Example: coditect dispatcher backup backups/monday.db
    """
    settings = _settings(store)
    installed().back_up(settings, target)
    say(f"{settings.store_url} was copied to {target}.")


@app.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `coditect dispatcher backup` made.")],
    store: StoreOption = None,
) -> None:
    """Put a backup in the ledger's place while no dispatcher runs. The former file is kept beside it.

    What was begun since the copy was made is forgotten: late results of it are refused, and what the copy has as
    published or running is published again when a dispatcher starts.

    \b
    Example: coditect dispatcher restore backups/monday.db
    """
    settings = _settings(store)
    kept = installed().restore(settings, source)
    say(f"{settings.store_url} was restored from {source}.")
    if kept is not None:
        say(f"What it was before is in {kept}.")


def _settings(store: str | None) -> Settings:
    settings = read_settings()
    return settings if store is None else replace(settings, store_url=store)
