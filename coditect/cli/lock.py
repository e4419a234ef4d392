"""`coditect lock` and `breaker`: see, take, renew and release locks, also by force; see, open and reset breakers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Unpack

import typer

from coditect.cli.connections import ask, complete_agent, connections, listed
from coditect.cli.terminal.options import ByOption, LimitOption, ShownAnswer, WatchOption, present, presented, takes
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.client.coordination import BreakerListing, LockRow
from coditect.collaboration.locks import GrantedLockOptions
from coditect.errors import InputError, NotFound

app = typer.Typer(no_args_is_help=True)

TicketArgument = Annotated[str, typer.Argument(metavar="TICKET", help="The lock's ticket, from `lock acquire`.")]
FenceArgument = Annotated[int, typer.Argument(metavar="FENCE", min=1, help="The lock's fence, as it prints it.")]


@app.command("list")
def list_locks(
    context: typer.Context,
    resource: Annotated[str | None, typer.Argument(metavar="[RESOURCE]", help="Only the lock of this name.")] = None,
    limit: LimitOption = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List who holds locks under which fence, and who waits for each, in the order in which they are granted.

    Exits 4 when nobody holds the named lock, or waits for it.

    \b
    Example: coditect lock list repo:x
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await listed(opened, lambda client: client.locks.list(resource, limit=limit))
        if resource is not None and not rows and not watch:
            raise NotFound("No agent or client holds this lock, or waits for it", resource=resource)
        return ShownAnswer(rows, (_lock_table(rows),))

    present(look, output, watch=watch)


@app.command("acquire")
@takes(GrantedLockOptions)
def acquire_lock(
    context: typer.Context,
    resources: Annotated[list[str], typer.Argument(metavar="RESOURCE...", help="What is locked, in one step.")],
    by: ByOption = "",
    output: OutputOption = Output.TABLE,
    **options: Unpack[GrantedLockOptions],
) -> None:
    """Lock resources for a script, and print ticket and fence; exits 3 if others keep the lock.

    Nothing renews the lock but `lock renew`. `lock release --ticket` ends it.

    \b
    Example: coditect lock acquire site:shop --reason "release 17" --ttl 10m
    """
    grant = ask(context, lambda client: client.locks.acquire(*resources, by=by, **options))
    render(output, grant, FieldsView({"ticket": grant.ticket, "fence": str(grant.fence)}))


@app.command("renew")
def renew_lock(context: typer.Context, ticket: TicketArgument, fence: FenceArgument) -> None:
    """Keep an acquired lock for another full TTL.

    \b
    Example: coditect lock renew 01890a5d-ac96-774b-bcce-b302099a8057 17
    """
    left_ms = ask(context, lambda client: client.locks.renew(ticket, fence=fence))
    say(f"held for another {left_ms / 1000:.0f} s")


@app.command("release")
def release_lock(
    context: typer.Context,
    resource: Annotated[str | None, typer.Argument(metavar="[RESOURCE]", help="What its holders lose.")] = None,
    agent: Annotated[
        str | None, typer.Option(help="Release all locks of this agent instead.", autocompletion=complete_agent)
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only those of this task of the agent.")] = None,
    ticket: Annotated[str | None, typer.Option(help="Release this lock of `lock acquire`.")] = None,
    fence: Annotated[int | None, typer.Option(min=1, help="The fence of the ticket's lock.")] = None,
    reason: Annotated[str, typer.Option(help="Why; the holders are told.")] = "released by an operator",
) -> None:
    """Release locks by force and tell their holders why, or with --ticket and --fence, a lock of `lock acquire`.

    Only a resource that checks the fence refuses what a former holder still writes.

    \b
    Example: coditect lock release repo:x --reason "its holder hangs"
    """
    if ticket is not None and fence is not None:
        released = ask(context, lambda client: client.locks.release(ticket, fence=fence))
        say("released" if released else "not released: it was not held under this fence any more")
        return
    if ticket is not None or fence is not None:
        raise InputError("A lock is released by its ticket and its fence", fix="--ticket TICKET --fence FENCE")
    forced: dict[str, Any] = {"agent": agent, "task": task, "reason": reason}
    count = ask(context, lambda client: client.locks.release_all(resource, **forced))
    say(f"{count} released: {reason}")


def _lock_table(rows: Sequence[LockRow]) -> TableView:
    columns = ("resource", "state", "mode", "fence", "agent", "task", "since", "expires", "reason")
    cells = [
        (
            row.resource,
            row.state,
            row.mode,
            str(row.fence or ""),
            row.agent,
            row.task,
            instant(row.begun_ms),
            instant(row.expires_ms),
            row.reason,
        )
        for row in rows
    ]
    return TableView(columns, cells, "Nothing is locked.")


breaker_app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The dependency's name, such as github.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; `breaker get` and `--why-not` tell it.")]


@breaker_app.command("list")
@presented
async def list_breakers(context: typer.Context) -> ShownAnswer:
    """List the breakers of the fleet that ever opened, with their state and the next probe.

    \b
    Example: coditect breaker list
    """
    rows = await listed(connections(context), lambda client: client.breakers.list())
    return ShownAnswer(rows, (_breaker_table(rows),))


@breaker_app.command("get")
def get_breaker(context: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show the state of one breaker, why and by whom it was opened or closed, and when its next probe is due.

    \b
    Example: coditect breaker get github
    """
    rows = [ask(context, lambda client: client.breakers.get(name))]
    render(output, rows, _breaker_table(rows))


@breaker_app.command("open")
def open_breaker(context: typer.Context, name: NameArgument, reason: ReasonOption = "opened by an operator") -> None:
    """Open a breaker in the whole fleet: no call is made, and no probe, until it is reset.

    \b
    Example: coditect breaker open github --reason "maintenance until noon"
    """
    ask(context, lambda client: client.breakers.open(name, reason=reason))
    say(f"{name} is open until `coditect breaker reset {name}`: {reason}")


@breaker_app.command("reset")
def reset_breaker(context: typer.Context, name: NameArgument, reason: ReasonOption = "reset by an operator") -> None:
    """Close a breaker in the whole fleet, whatever opened it; what waited for it goes on.

    \b
    Example: coditect breaker reset github
    """
    ask(context, lambda client: client.breakers.reset(name, reason=reason))
    say(f"{name} is closed: {reason}")


def _breaker_table(rows: Sequence[BreakerListing]) -> TableView:
    columns = ("breaker", "state", "since", "reason", "by", "next probe")
    cells = [
        (
            row.state.name,
            "open" if row.state.open else "closed",
            instant(row.state.since_ms),
            row.state.reason,
            row.state.by,
            instant(row.due_ms) if row.due_ms else ("none until it is reset" if row.state.open else ""),
        )
        for row in rows
    ]
    return TableView(columns, cells, "No breaker ever opened.")
