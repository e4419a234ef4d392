"""`coditect webhook`: add, list, test, enable, disable and remove the URLs to which events are posted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from coditect.aio.clock import SystemClock
from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.errors import missing_extra
from coditect.integrations.http.addresses import webhook_hosts
from coditect.operations.connections import Connections
from coditect.operations.coordination import webhooks
from coditect.operations.coordination.webhooks import Webhook
from coditect.settings.api import ApiSettings, api_settings
from coditect.settings.settings import read_variables

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The webhook's name.")]
Many = list[str]


@app.command("add")
def add_webhook(
    context: typer.Context,
    name: NameArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are posted: https://...")],
    kind: Annotated[Many | None, typer.Option("--kind", "-k", help="Type of events, or first words: task.dead")] = None,
    task: Annotated[Many | None, typer.Option("--task", help="Events about this task.")] = None,
    workflow: Annotated[Many | None, typer.Option("--workflow", help="Events of this workflow.")] = None,
    capability: Annotated[Many | None, typer.Option("--capability", "-c", help="Tasks of this capability.")] = None,
    agent: Annotated[Many | None, typer.Option("--agent", help="Events of this agent.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a webhook, and show the secret by which its receiver checks signatures.

    Each option may be given many times; an event must fit one value of each that is given. The events from now on
    are posted by `coditect api`; if none that runs posts them, the state is `undelivered`.

    \b
    Example: coditect webhook add pager https://example.com/hooks/coditect --kind task.dead --kind workflow.failed
    """
    settings = _settings()
    key = webhooks.check_key(settings.webhook_key or "")
    chosen = {"kind": kind, "task": task, "workflow": workflow, "capability": capability, "agent": agent}
    given = {name: values for name, values in chosen.items() if values}

    async def add() -> Webhook:
        await webhook_hosts(private=settings.webhook_private).check_receiver(webhooks.check_url(url))
        opened = connections(context)
        new = await webhooks.add_webhook(opened, name, url, given, now_ms=SystemClock().now_ms())
        return await webhooks.await_delivery(opened, new)

    added = run_loop(add())
    shown = {**_shown(added), "secret": added.secret(key)}
    render(output, shown, FieldsView(shown))


@app.command("list")
def list_webhooks(context: typer.Context, output: OutputOption = Output.TABLE, watch: WatchOption = False) -> None:
    """List the webhooks with their state, and why one is disabled, broken, or undelivered for want of an API.

    \b
    Example: coditect webhook list
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await webhooks.list_webhooks(opened)
        cells = [(one.name, one.url, _filter(one), one.state, one.reason or None) for one in rows]
        view = TableView(("webhook", "url", "events", "state", "reason"), cells, "There is no webhook.")
        return ShownAnswer([_shown(one) for one in rows], (view,))

    present(look, output, watch=watch)


@app.command("test")
def test_webhook(context: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Post one event `webhook.test` from here, and show the answer; exits 1 if it failed, or if no API posts events.

    \b
    Example: coditect webhook test pager
    """
    attempt = run_loop(_test(connections(context), name, _settings()))
    render(output, attempt, FieldsView(attempt))
    listed = run_loop(webhooks.list_webhooks(connections(context)))
    undelivered = next((one.reason for one in listed if one.name == name and one.state == "undelivered"), "")
    if undelivered:
        say(f"{name} is undelivered: {undelivered}")
    if attempt["reason"] or undelivered:
        raise typer.Exit(1)


@app.command("enable")
def enable_webhook(context: typer.Context, name: NameArgument) -> None:
    """Enable a disabled webhook; the events that waited are posted first.

    \b
    Example: coditect webhook enable pager
    """
    opened = connections(context)

    async def enable() -> Webhook:
        return await webhooks.await_delivery(opened, await webhooks.steer_webhook(opened, name, active=True))

    enabled = run_loop(enable())
    say(f"{name} is {enabled.state}{f': {enabled.reason}' if enabled.reason else ''}.")


@app.command("disable")
def disable_webhook(context: typer.Context, name: NameArgument) -> None:
    """Disable a webhook; the latest 10,000 events wait until it is enabled.

    \b
    Example: coditect webhook disable pager
    """
    run_loop(webhooks.steer_webhook(connections(context), name, active=False, reason="disabled by a person"))
    say(f"{name} is disabled.")


@app.command("remove")
def remove_webhook(context: typer.Context, name: NameArgument) -> None:
    """Remove a webhook with the events that wait for it.

    \b
    Example: coditect webhook remove pager
    """
    run_loop(webhooks.remove_webhook(connections(context), name))
    say(f"{name} was removed.")


async def _test(opened: Connections, name: str, settings: ApiSettings) -> dict[str, object]:
    try:
        from coditect.api.webhooks.sending import webhook_sender
    except ImportError as error:
        raise missing_extra("api") from error

    webhook = await webhooks.get_webhook(opened, name)
    async with webhook_sender(settings.webhook_key or "", private=settings.webhook_private) as sender:
        return asdict(await sender.send_test(webhook, SystemClock()))


def _settings() -> ApiSettings:
    return api_settings(read_variables())


def _shown(webhook: Webhook) -> dict[str, object]:
    return {
        "webhook": webhook.name,
        "url": webhook.url,
        "filter": dict(webhook.filter),
        "state": webhook.state,
        "reason": webhook.reason or None,
        "created": instant(webhook.created_ms),
    }


def _filter(webhook: Webhook) -> str:
    return " ".join(f"{name}={','.join(values)}" for name, values in webhook.filter.items()) or "all"
