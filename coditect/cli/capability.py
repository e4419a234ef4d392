"""`coditect capability`: list the capabilities of the living agents, and show how to use one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import Connections, connections
from coditect.cli.terminal.output import Output, OutputOption, say, write_fields, write_json, write_table
from coditect.errors import NotFound, RegistryUnavailable
from coditect.model.capability import CapabilitySpec, check_capability_name, nearest_names
from coditect.model.example import Example
from coditect.registry.port import Search

app = typer.Typer(no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class _Offer:
    """A capability, as the agent that started last declares it."""

    spec: CapabilitySpec
    agents: tuple[str, ...]
    versions: tuple[str, ...]


@app.command("list")
def list_capabilities(
    context: typer.Context,
    tag: Annotated[str | None, typer.Option("--tag", help="Only with this tag, of its own or of an agent's.")] = None,
    keyword: Annotated[
        str | None, typer.Option("--keyword", "-k", help="Only with this word in a name, description or tag.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what the living agents can do.

    \b
    Example: coditect capability list
    """
    offers = run_loop(_offers(connections(context), Search(tag=tag, keyword=keyword)))
    if output is Output.JSON:
        write_json([_json(offer) for offer in offers])
        return
    columns = ("capability", "agents", "timeout s", "cost", "tags", "description")
    rows = [(one.spec.name, len(one.agents), *_limits(one.spec), one.spec.description) for one in offers]
    write_table(columns, rows, empty="No agent is registered.")


@app.command("show")
def show_capability(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `coditect capability list` shows it.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one capability: who offers it, the schemas of its input and value, and a task to try.

    \b
    Example: coditect capability show code.review
    """
    found = run_loop(_offers(connections(context), Search()))
    offer = next((one for one in found if one.spec.name == name), None)
    if offer is None:
        nearest = nearest_names(name, [one.spec.name for one in found])
        raise NotFound("No living agent offers this capability", capability=name, nearest=nearest)
    if output is Output.JSON:
        write_json(_json(offer))
        return
    spec, example = offer.spec, Example(offer.spec.input_schema)
    fields = {"tags": spec.tags, "cost": spec.cost, "timeout s": spec.timeout_seconds, "strategy": spec.strategy}
    write_fields(
        {"capability": spec.name, "description": spec.description, "agents": offer.agents, "versions": offer.versions}
        | fields
        | {"input": _pretty(spec.input_schema), "value": _pretty(spec.output_schema), "try": _try(spec, example)}
    )
    for place in example.unsure:
        say(f"The example has to be filled in at {place}")


async def known_capabilities(opened: Connections, named: Iterable[str]) -> tuple[str, ...]:
    """Return the named capabilities; when none is named, all that living agents offer.

    Without a registry the result is empty; a line on stderr says so, and the command goes on with less.
    """
    given = tuple(dict.fromkeys(check_capability_name(name) for name in named))
    if given:
        return given
    try:
        async with opened.registry() as registry:
            return tuple(sorted(await registry.capabilities()))
    except RegistryUnavailable:
        say("The registry does not answer: only capabilities named with --capability are looked at.")
        return ()


async def _offers(opened: Connections, search: Search) -> list[_Offer]:
    async with opened.registry() as registry:
        records = await registry.find(search)
    specs: dict[str, CapabilitySpec] = {}
    agents: dict[str, dict[str, str]] = {}
    for record in sorted(records, key=lambda one: one.registration.started_at_ms):
        for spec in record.registration.capabilities:
            specs[spec.name] = spec
            agents.setdefault(spec.name, {})[record.agent_id] = record.registration.version
    return [
        _Offer(specs[name], tuple(sorted(agents[name])), tuple(sorted(set(agents[name].values()))))
        for name in sorted(specs)
    ]


def _limits(spec: CapabilitySpec) -> tuple[object, ...]:
    return spec.timeout_seconds, spec.cost, spec.tags


def _json(offer: _Offer) -> dict[str, object]:
    spec = offer.spec
    example = Example(spec.input_schema)
    return {
        **spec_json(spec),
        "agents": offer.agents,
        "versions": offer.versions,
        "example": example.body,
        "example_unsure": example.unsure,
    }


def spec_json(spec: CapabilitySpec) -> dict[str, object]:
    """Return a capability as JSON values, for programs."""
    return {
        "name": spec.name,
        "description": spec.description,
        "cost": spec.cost,
        "tags": sorted(spec.tags),
        "timeout_seconds": spec.timeout_seconds,
        "input_schema": dict(spec.input_schema),
        "output_schema": dict(spec.output_schema),
    }


def _pretty(schema: object) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False)


def _try(spec: CapabilitySpec, example: Example) -> str:
    durable = " --detach" if spec.long else ""
    return f"coditect task submit {spec.name} {shlex.quote(json.dumps(example.body, ensure_ascii=False))}{durable}"
