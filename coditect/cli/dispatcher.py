"""`coditect dispatcher`: run the control plane, and show its state."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import typer

from coditect.cli.connections import connections
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.output import Output, OutputOption, TableView
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.errors import ControlPlaneRequired
from coditect.operations.connections import Connections
from coditect.operations.status import COUNTS, ClusterStatus, DispatcherStatus, cluster_status
from coditect.settings.settings import Settings, read_settings

GROUP = "coditect.control_plane"
"""The group of Python entry points under which a control plane offers its program."""
INSTALL = "pip install 'coditect[dispatcher]'"

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
        str | None, typer.Option("--store", help="The ledger: sqlite:PATH, or fdb:CLUSTER_FILE. [CODITECT_STORE_URL]")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, max=1_024, help="Shards of a new ledger. [CODITECT_SHARDS]")
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option("--keep-days", min=0, max=3_650, help="How long ended workflows stay. [CODITECT_KEEP_DAYS]"),
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(
            "--health-port", min=0, max=65_535, help="/livez and /readyz; 0 takes any. [CODITECT_HEALTH_PORT]"
        ),
    ] = None,
) -> None:
    """Run a dispatcher until SIGTERM or SIGINT. At its end it hands its shards of the control plane over.

    Any number of them share the work of a FoundationDB store. A SQLite file has one owner: another dispatcher stands
    by, and takes over when the owner has ended. What no option says is taken from the environment: those named below,
    and CODITECT_AMQP_URL, CODITECT_REDIS_URL, CODITECT_MANAGEMENT_URL, CODITECT_REPLY_QUEUE, CODITECT_DECLARE,
    CODITECT_WINDOW, CODITECT_WIRE, CODITECT_HEALTH_HOST and CODITECT_LOG_LEVEL; for FoundationDB over TLS
    CODITECT_FDB_TLS_CERT_FILE, _KEY_FILE, _KEY_PASSWORD, _CA_FILE and _VERIFY_PEERS.

    \b
    Example: coditect dispatcher run --store sqlite:ledger.db
    """
    given: dict[str, Any] = {"store_url": store, "shards": shards, "keep_days": keep_days, "health_port": health_port}
    settings = replace(read_settings(), **{name: one for name, one in given.items() if one is not None})
    say_guesses(AMQP, REDIS)
    raise typer.Exit(installed().main(settings))


@app.command("status")
def show_status(context: typer.Context, output: OutputOption = Output.TABLE, watch: WatchOption = False) -> None:
    """Show the control plane's dispatchers and shards. Each dispatcher has its counts of refused work.

    \b
    Since a dispatcher began: REFUSED commits that came too late, since the shard was another's by then; LATE
    results that a fence refused; STRANGE results of unknown nodes; DROPPED tasks without a queue that came
    too fast to be answered. NEWER: the nodes of its shards that are left alone, since a newer dispatcher wrote
    them. A dispatcher that does not answer, or has no shard, has none.

    \b
    Example: coditect dispatcher status
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        return _status(await _cluster_status(opened))

    present(look, output, watch=watch)


def _status(stands: ClusterStatus) -> ShownAnswer:
    dispatchers = [{"owner": one.owner, "shards": one.shards} | _counts(one) for one in stands.dispatchers]
    columns = ("dispatcher", "shards", *(name.replace("_", " ") for name in COUNTS))
    owners = TableView(columns, [(one.owner, len(one.shards), *_counts(one).values()) for one in stands.dispatchers])
    rows = [(one.shard, one.owner, one.epoch, one.workflows, one.under_way) for one in stands.shards]
    shards = TableView(("shard", "owner", "epoch", "workflows", "under way"), rows)
    return ShownAnswer({"dispatchers": dispatchers, "shards": stands.shards}, (owners, "", shards))


async def _cluster_status(opened: Connections) -> ClusterStatus:
    async with opened.broker() as broker:
        return await cluster_status(broker)


def _counts(one: DispatcherStatus) -> dict[str, int | None]:
    return dict.fromkeys(COUNTS) if one.counts is None else asdict(one.counts)


def installed() -> ControlPlaneProgram:
    """Load and return the installed control plane's program: it runs a dispatcher, backs up and restores the store.

    Raises:
        ControlPlaneRequired: when no control plane is installed, or it cannot be loaded.
    """
    return cast(ControlPlaneProgram, entry_point(GROUP, "No control plane is installed that could be run"))


def entry_point(group: str, missing: str, *, fix: str = INSTALL) -> object:
    """Load and return the first object that an installed package offers in a group of entry points.

    Raises:
        ControlPlaneRequired: with the sentence `missing` and the `fix` when nothing is offered, or is not there; also
            when it cannot be loaded.
    """
    from importlib.metadata import entry_points

    for one in entry_points(group=group):
        try:
            return cast(object, one.load())
        except ImportError as error:
            if error.name and one.module.startswith(error.name):
                # a wheel names what is for developers, and leaves it out
                raise ControlPlaneRequired(missing, reason=str(error), fix=fix) from error
            raise ControlPlaneRequired(
                "The installed control plane cannot be loaded", reason=str(error), fix=INSTALL
            ) from error
    raise ControlPlaneRequired(missing, fix=fix)
