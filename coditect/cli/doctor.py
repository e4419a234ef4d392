"""`coditect doctor`: check this machine and its servers, ask a program for its health, and measure the fleet's targets.

A container runs `coditect doctor --health` every few seconds: what the other commands need is imported by them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections, listed
from coditect.cli.terminal.options import only_with
from coditect.cli.terminal.output import Aside, Output, OutputOption, TableView, render, say
from coditect.errors import CoditectError, ControlPlaneRequired, InputError, RegistryUnavailable, Retryable, SetupError
from coditect.settings.settings import Settings, read_settings

if TYPE_CHECKING:
    from coditect.local.doctor import Check
    from coditect.operations.connections import Connections
    from coditect.operations.rebuild import Rebuilt
    from coditect.operations.scorecard import Scorecard, ScorecardRow

TIMEOUT_SECONDS = 3.0
"""More than a program takes to say that its event loop stands still."""
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - nothing listens here
"""The addresses that mean all interfaces, on which a program listens, each with the loopback address to connect to."""

app = typer.Typer()


@app.command("doctor")
def doctor_command(
    context: typer.Context,
    health: Annotated[
        bool, typer.Option("--health", help="Ask the agent or dispatcher at the health port whether it takes work.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="With --health: the program's port. [CODITECT_HEALTH_PORT]")
    ] = None,
    scorecard: Annotated[
        bool, typer.Option("--scorecard", help="Measure the fleet for five seconds, and show each target's verdict.")
    ] = False,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="With --scorecard: put a private fleet under load and faults for two minutes."),
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make again from the ledger what the broker or Redis lost, and report it.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check Python, disk, servers and leftover files, and print a fix for each fault; only --rebuild changes anything.

    Exits 1 when a check fails, when --health finds a program that takes no work, when --scorecard misses a target, or
    when --prove cannot measure one.

    \b
    Example: coditect doctor
    """
    only_with(context, ("health",), "port")
    only_with(context, ("scorecard",), "prove")
    if health + scorecard + rebuild > 1:
        raise InputError("These options do different things", fix="--health, --scorecard or --rebuild")
    if health:
        _health(port, output)
    elif scorecard:
        _scorecard(context, output, prove=prove)
    elif rebuild:
        _rebuild(context, output)
    else:
        _check(context, output)


def _check(context: typer.Context, output: Output) -> None:
    checks = _check_all(context)
    table = TableView(("check", "ok", "found"), [(check.name, check.ok, check.detail) for check in checks])
    render(output, checks, table, *(Aside(f"{check.name}: {check.fix}") for check in checks if check.fix))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _check_all(context: typer.Context) -> list[Check]:
    from coditect import local
    from coditect.cli.compose import sign_in
    from coditect.cli.local.up import up_folder

    connections(context)  # libraries are silent from then on
    settings = read_settings()
    checks = local.doctor(
        up_folder(Path.cwd()),
        environ=os.environ,
        amqp_url=_named(settings.amqp_url, Settings().amqp_url),
        redis_url=_named(settings.redis_url, Settings().redis_url),
        management_url=settings.management_url,
        sign_in=sign_in,
    )
    if all(check.ok for check in checks if check.name == "broker"):
        checks.append(run_loop(check_control_plane(connections(context))))
        checks += run_loop(_check_webhooks(context))
    return checks


async def check_control_plane(opened: Connections) -> Check:
    """Check that the broker lets its user ask the control plane, and that a dispatcher answers if programs need one.

    They do where a dispatcher has been, or an agent offers a long capability, whose tasks are durable.
    """
    from coditect.local.doctor import Check
    from coditect.operations.fleet import find_agents, offers_of
    from coditect.operations.status import cluster_status
    from coditect.registry.port import Search
    from coditect.wire import routing

    name = "control plane"
    try:
        async with opened.broker() as broker:
            try:
                found = await cluster_status(broker)
            except ControlPlaneRequired as error:
                needed = await broker.stats(routing.CONTROL_QUEUE) is not None
                with suppress(RegistryUnavailable):
                    needed = needed or any(offer.spec.long for offer in offers_of(await find_agents(opened, Search())))
                if needed:
                    return Check(name, False, "no dispatcher answers", str(error.facts["fix"]))
                return Check(name, True, "no dispatcher, which direct tasks do not need")
    except CoditectError as error:
        return Check(name, False, str(error), str(error.facts.get("fix", "")))
    return Check(name, True, f"{len(found.dispatchers)} dispatchers, {len(found.shards)} shards")


async def _check_webhooks(context: typer.Context) -> list[Check]:
    """Check that an API posts the events of every webhook; nothing is checked where no control plane answers."""
    from coditect.client.webhooks import NO_API
    from coditect.local.doctor import Check

    try:
        found = await listed(connections(context), lambda client: client.webhooks.list())
    except (Retryable, SetupError):
        return []
    except CoditectError as error:
        return [Check("webhooks", False, str(error), str(error.facts.get("fix", "")))]
    undelivered = [webhook.name for webhook in found if webhook.state == "undelivered"]
    if not undelivered:
        return [Check("webhooks", True, f"{len(found)} webhooks")] if found else []
    return [Check("webhooks", False, f"undelivered: {', '.join(undelivered)}", NO_API)]


def _rebuild(context: typer.Context, output: Output) -> None:
    from coditect.operations.rebuild import KINDS, rebuild

    async def run() -> Rebuilt:
        async with connections(context).broker() as broker:
            return await rebuild(broker)

    rebuilt = run_loop(run())
    table = TableView(("kind", "made again", "what"), [(kind, rebuilt.counts[kind], KINDS[kind]) for kind in KINDS])
    asides = [Aside(f"{rebuilt.shards} shards were gone over.")]
    if not rebuilt.compared:
        less = "RQ could not be compared to the end: more of its jobs may have been made than are counted."
        asides.append(Aside(less))
    render(output, {"shards": rebuilt.shards, **rebuilt.counts, "compared": rebuilt.compared}, table, *asides)


def _named(url: str, default: str) -> str | None:
    """Return a server's URL; None if it equals the default URL, as it does when no setting names the server."""
    return None if url == default else url


def _health(port: int | None, output: Output) -> None:
    """Ask /readyz at CODITECT_HEALTH_HOST: a container's health check needs no shell and no other program."""
    settings = read_settings()
    asked = port or settings.health_port
    if not asked:
        fix = "CODITECT_HEALTH_PORT, or --port: that of the program's --health-port"
        raise SetupError("No health port is named", fix=fix)
    ready, detail = _ask(ANYWHERE.get(settings.health_host, settings.health_host), asked)
    render(output, {"ready": ready, "detail": detail}, detail)
    if not ready:
        raise typer.Exit(1)


def _ask(host: str, port: int) -> tuple[bool, str]:
    """Ask a program's health port; return whether it is ready, and the text of its answer.

    Raises:
        SetupError: when nothing answers.
    """
    connection = HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status == 200, answer.read().decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        fix = "start the program with --health-port or CODITECT_HEALTH_PORT"
        raise SetupError("Nothing answers at the health port", host=host, port=port, reason=reason, fix=fix) from error
    finally:
        connection.close()


def _scorecard(context: typer.Context, output: Output, *, prove: bool) -> None:
    """Show each target as pass, fail, or unknown where nothing happened; submit nothing to the running fleet."""
    from coditect.operations.scorecard import Verdict, take_scorecard

    scorecard = _prove() if prove else run_loop(take_scorecard(connections(context)))
    columns = ("target", "wanted", "measured", "verdict", "how it was measured")
    render(output, scorecard, TableView(columns, [_cells(row) for row in scorecard.rows]))
    if scorecard.counts(Verdict.FAIL) or (prove and scorecard.counts(Verdict.UNKNOWN)):
        raise typer.Exit(1)


def _cells(row: ScorecardRow) -> tuple[str, ...]:
    measured = None if row.value is None else f"{row.value:.4g}" if row.value < 1_000 else f"{row.value:.0f}"
    shown = "-" if measured is None else f"{measured} {row.unit}"
    return row.name, f"{row.bound} {row.limit:g} {row.unit}", shown, row.verdict.value, row.how


def _prove() -> Scorecard:
    """Run the proof on a private fleet in a temporary folder, which is removed at the end."""
    from coditect.cli.local.up import control_plane
    from coditect.local.prove import prove_targets

    with TemporaryDirectory(prefix="coditect-prove-") as folder:
        place = Path(folder)
        connect = partial(_connect, place)
        return run_loop(prove_targets(control_plane(), folder=place, environ=os.environ, connect=connect, say=say))


def _connect(folder: Path, variables: Mapping[str, str]) -> Connections:
    """Return connections to the fleet whose processes have these variables, with no other settings.

    This process has the addresses of the servers from then on: they are no guesses.
    """
    from coditect.cli.compose import RealConnections
    from coditect.cli.terminal.failure import AMQP, REDIS

    os.environ.update({name: variables[name] for name in (AMQP, REDIS)})
    return RealConnections(read_settings(variables, folder=folder))
