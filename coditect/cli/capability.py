"""`coditect capability`: list the capabilities of the living agents, and show how to use one."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.example import Example
from coditect.cli.observe.completion import complete_capability
from coditect.cli.terminal.output import Aside, FieldsView, Output, OutputOption, TableView, render
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.codec import is_binary
from coditect.model.capability import CapabilitySpec
from coditect.operations import fleet
from coditect.operations.documents.fleet import SpecDocument
from coditect.operations.fleet import CapabilityOffer
from coditect.registry.port import Search

app = typer.Typer(no_args_is_help=True)

SPEC_COLUMNS = ("timeout s", "cost", "tags", "description")


@app.command("list")
def list_capabilities(
    context: typer.Context,
    tag: Annotated[str | None, typer.Option("--tag", help="Only with this tag, of its own or of an agent's.")] = None,
    keyword: Annotated[
        str | None, typer.Option("--keyword", "-k", help="Only with this word in a name, description or tag.")
    ] = None,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the capabilities that the living agents offer.

    \b
    Example: coditect capability list
    """
    opened, search = connections(context), Search(tag=tag, keyword=keyword)

    async def look() -> ShownAnswer:
        offers = await fleet.find_offers(opened, search)
        columns = ("capability", "agents", *SPEC_COLUMNS)
        rows = [(one.spec.name, len(one.agents), *spec_cells(one.spec)) for one in offers]
        table = TableView(columns, rows, "No agent is registered.")
        return ShownAnswer([_json(offer) for offer in offers], (table,))

    present(look, output, watch=watch)


@app.command("show")
def show_capability(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As `coditect capability list` shows it.", autocompletion=complete_capability
        ),
    ],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one capability: its agents, schemas, and an example task.

    \b
    Example: coditect capability show hello.greet
    """
    offer = run_loop(fleet.get_offer(connections(context), name))
    spec, example = offer.spec, Example(offer.spec.input_schema)
    shown = {
        "capability": spec.name,
        "description": spec.description,
        "agents": offer.agents,
        "versions": offer.versions,
        "tags": spec.tags,
        "cost": spec.cost,
        "timeout s": spec.timeout_seconds,
        "strategy": spec.strategy,
        "max queued": spec.max_queued,
        "rate": None if spec.rate is None else str(spec.rate),
        "input": _pretty(spec.input_schema),
        "value": _pretty(spec.output_schema),
        "try": _try(spec, example),
    }
    asides = [Aside(f"The example has to be filled in at {place}") for place in example.unsure]
    render(output, _json(offer), FieldsView(shown), *asides)


def _json(offer: CapabilityOffer) -> dict[str, object]:
    spec = offer.spec
    example = Example(spec.input_schema)
    return {
        **spec_json(spec),
        "agents": offer.agents,
        "versions": offer.versions,
        "example": example.body,
        "example_unsure": example.unsure,
    }


def spec_cells(spec: CapabilitySpec) -> tuple[object, ...]:
    """Return a capability's timeout, cost, tags and description as the cells of a table row."""
    return spec.timeout_seconds, spec.cost, spec.tags, spec.description


def spec_json(spec: CapabilitySpec) -> dict[str, object]:
    """Return a capability's declaration as JSON values for `--output json`."""
    return asdict(SpecDocument.of(spec))


def _pretty(schema: object) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False)


def _try(spec: CapabilitySpec, example: Example) -> str:
    if is_binary(spec.input_schema):
        return f"coditect task submit {spec.name} @file --bytes"
    durable = " --detach" if spec.long else ""
    return f"coditect task submit {spec.name} {shlex.quote(json.dumps(example.body, ensure_ascii=False))}{durable}"
