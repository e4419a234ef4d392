"""`coditect events`: show the events of the fleet as they happen."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.output import Output, OutputOption, instant, readable, write_json_line, write_yaml
from coditect.model.event import Event
from coditect.operations.connections import Connections
from coditect.settings.addresses import printable

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
    Example: coditect events tail 'task.*' --count 10
    """
    with suppress(KeyboardInterrupt):
        run_loop(_tail(connections(context), pattern, count, output))


async def _tail(opened: Connections, pattern: str, count: int | None, output: Output) -> None:
    seen = 0
    async with opened.client() as client, client.events(pattern) as events:
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
    match output:
        case Output.JSON:
            write_json_line(document)
        case Output.YAML:
            write_yaml(document, start="---\n")
        case Output.TABLE:
            text = f"{readable(moment)}  {event.type}  {event.subject or event.source}  {dict(event.data) or ''}"
            typer.echo(printable(text.rstrip()))
