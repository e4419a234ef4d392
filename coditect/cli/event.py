"""`coditect event` and `webhook`: show the fleet's events as they happen, emit one, and post them to URLs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Unpack

import typer

from coditect.aio.clock import SystemClock
from coditect.aio.launch import tell_ready
from coditect.aio.loop import run_loop
from coditect.cli.connections import ask, connections, listed
from coditect.cli.terminal.options import ByOption, ShownAnswer, presented, read_body, takes
from coditect.cli.terminal.output import (
    FieldsView,
    Output,
    OutputOption,
    TableView,
    instant,
    readable,
    render,
    render_next,
    say,
)
from coditect.client.client import Client
from coditect.client.webhooks import Webhook, WebhookOptions, check_key, check_url
from coditect.errors import InvalidTask, needing
from coditect.integrations.http.addresses import webhook_hosts
from coditect.model.message import Event
from coditect.operations.connections import Connections
from coditect.settings.addresses import printable
from coditect.settings.settings import ApiSettings, read_variables
from coditect.wire.json import loads

app = typer.Typer(no_args_is_help=True)


@app.command("tail")
def tail_events(
    context: typer.Context,
    pattern: Annotated[
        str, typer.Argument(help="Topic pattern: * is one word, # any number, e.g. task.* or agent.offline.")
    ] = "#",
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Follow events until Ctrl-C; with --output json one CloudEvent per line, with yaml one per document.

    \b
    Example: coditect event tail 'task.*' --count 10
    """
    with suppress(KeyboardInterrupt):
        run_loop(_tail(connections(context), pattern, count, output))


@app.command("emit")
def emit_event(
    context: typer.Context,
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="Words with dots, such as repo.pushed.")],
    data: Annotated[str, typer.Argument(help="A JSON object; @FILE, or - for stdin.")] = "{}",
    subject: Annotated[str, typer.Option(help="What it is about, such as the id of a task.")] = "",
    by: ByOption = "",
) -> None:
    """Publish an event to all listeners, triggers and webhooks, at most once.

    \b
    Example: coditect event emit repo.pushed '{"branch": "main"}' --subject shop
    """
    document = loads(read_body(data))
    if not isinstance(document, dict):
        raise InvalidTask("The data of an event are a JSON object", fix="""write '{"branch": "main"}'""")
    typer.echo(ask(context, lambda client: client.emit_data(type_, document, subject=subject, by=by)))


async def _tail(opened: Connections, pattern: str, count: int | None, output: Output) -> None:
    seen = 0
    async with opened.fleet() as client, client.events(pattern) as events:
        tell_ready()
        async for event in events:
            _write(event, output)
            seen += 1
            if seen == count:
                return


def _write(event: Event, output: Output) -> None:
    moment = instant(event.time_ms)
    document = {
        "type": event.type,
        "source": event.source,
        "id": event.id,
        "time": moment,
        "subject": event.subject,
        "data": event.data,
    }
    data = readable(event.data) if event.data else ""
    text = f"{readable(moment)}  {event.type}  {event.subject or event.source}  {data}"
    render_next(output, document, printable(text.rstrip()))


webhook_app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The webhook's name.")]


@webhook_app.command("create")
@takes(WebhookOptions)
def create_webhook(
    context: typer.Context,
    name: NameArgument,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where events are posted: https://...")],
    output: OutputOption = Output.TABLE,
    **conditions: Unpack[WebhookOptions],
) -> None:
    """Create a webhook, and show the secret by which its receiver checks signatures.

    Each option may be given many times; an event must fit one value of each that is given. The events from now on
    are posted by `coditect api`; if none that runs posts them, the state is `undelivered`.

    \b
    Example: coditect webhook create pager https://example.com/hooks/coditect --kind task.dead --kind workflow.failed
    """
    settings = _settings()
    key = check_key(settings.webhook_key or "")

    async def create(client: Client) -> Webhook:
        await webhook_hosts(private=settings.webhook_private).check_receiver(check_url(url))
        return await client.webhooks.delivered(await client.webhooks.create(name, url, **conditions))

    added = ask(context, create)
    shown = {**_shown(added), "secret": added.secret(key)}
    render(output, shown, FieldsView(shown | {"created_ms": None, "created": instant(added.created_ms)}))


@webhook_app.command("list")
@presented
async def list_webhooks(context: typer.Context) -> ShownAnswer:
    """List the webhooks with their state, and why one is disabled, broken, or undelivered for want of an API.

    \b
    Example: coditect webhook list
    """
    rows = await listed(connections(context), lambda client: client.webhooks.list())
    cells = [(row.name, row.url, _filter(row), row.state, row.reason or None) for row in rows]
    view = TableView(("webhook", "url", "events", "state", "reason"), cells, "There is no webhook.")
    return ShownAnswer([_shown(row) for row in rows], (view,))


@webhook_app.command("test")
def test_webhook(context: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Post one event `webhook.test` from here, and show the answer; exits 1 if it failed, or if no API posts events.

    \b
    Example: coditect webhook test pager
    """
    attempt = run_loop(_test(connections(context), name, _settings()))
    render(output, attempt, FieldsView(attempt))
    webhooks = run_loop(listed(connections(context), lambda client: client.webhooks.list()))
    undelivered = next((row.reason for row in webhooks if row.name == name and row.state == "undelivered"), "")
    if undelivered:
        say(f"{name} is undelivered: {undelivered}")
    if attempt["reason"] or undelivered:
        raise typer.Exit(1)


@webhook_app.command("update")
def update_webhook(
    context: typer.Context,
    name: NameArgument,
    enabled: Annotated[
        bool, typer.Option("--enabled/--disabled", help="Disabled, the latest 10,000 events wait until it is enabled.")
    ],
) -> None:
    """Enable or disable a webhook. When it is enabled, the events that waited are posted first.

    \b
    Example: coditect webhook update pager --disabled
    """

    async def update(client: Client) -> Webhook:
        if not enabled:
            return await client.webhooks.disable(name)
        return await client.webhooks.delivered(await client.webhooks.enable(name))

    row = ask(context, update)
    say(f"{name} is {row.state}{f': {row.reason}' if enabled and row.reason else ''}.")


@webhook_app.command("delete")
def delete_webhook(context: typer.Context, name: NameArgument) -> None:
    """Delete a webhook with the events that wait for it.

    \b
    Example: coditect webhook delete pager
    """
    ask(context, lambda client: client.webhooks.delete(name))
    say(f"{name} was deleted.")


async def _test(opened: Connections, name: str, settings: ApiSettings) -> dict[str, object]:
    with needing("api"):
        from coditect.api.webhooks import webhook_sender

    async with opened.fleet() as client:
        webhook = await client.webhooks.get(name)
    async with webhook_sender(settings.webhook_key or "", private=settings.webhook_private) as sender:
        return asdict(await sender.send_test(webhook, SystemClock()))


def _settings() -> ApiSettings:
    return ApiSettings.read(read_variables())


def _shown(webhook: Webhook) -> dict[str, object]:
    return {name: value for name, value in asdict(webhook).items() if name != "salt"}


def _filter(webhook: Webhook) -> str:
    return " ".join(f"{name}={','.join(values)}" for name, values in webhook.filter.items()) or "all"
