"""`coditect topology`: compare the exchanges and queues that the code wants with those of the broker."""

from __future__ import annotations

from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.broker.topology import Binding, Topology, base_topology, capability_queues
from coditect.broker.topology_diff import (
    BINDINGS_NOTE,
    ProbeVerdict,
    TopologyPlan,
    TopologyStep,
    apply_topology,
    export_definitions,
    make_plan,
)
from coditect.cli.capability import known_capabilities
from coditect.cli.connections import Connections, connections
from coditect.cli.terminal.output import Output, OutputOption, say, write_json, write_table
from coditect.errors import TopologyMismatch
from coditect.model.capability import check_capability_name

app = typer.Typer(no_args_is_help=True)

CapabilitiesOption = Annotated[
    list[str] | None,
    typer.Option("--capability", "-c", help="Its queues, too; can be repeated. Default: what agents offer."),
]


@app.command("plan")
def plan_topology(
    context: typer.Context, capability: CapabilitiesOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Show the difference between broker and code; exits 1 when there is one.

    \b
    Example: coditect topology plan --capability code.review
    """
    plan = run_loop(_plan(connections(context), capability or []))
    _write(plan, output, missing="missing: apply creates it", applied=False)
    if not plan.clean:
        raise typer.Exit(1)


@app.command("apply")
def apply_plan(
    context: typer.Context, capability: CapabilitiesOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Create what is missing and bind everything; what differs is left alone and listed. Idempotent.

    \b
    Example: coditect topology apply --capability code.review --capability tests.run
    """
    plan = run_loop(_apply(connections(context), capability or []))
    _write(plan, output, missing="created", applied=True)
    differing = plan.of(ProbeVerdict.DIFFERS)
    if differing:
        raise TopologyMismatch(
            "What differs was left alone", names=[step.name for step in differing], fix="See the table above."
        )


@app.command("export")
def export_topology(
    context: typer.Context,
    capability: CapabilitiesOption = None,
    vhost: Annotated[str, typer.Option("--vhost", help="The virtual host that it is for.")] = "/",
) -> None:
    """Write the topology as a RabbitMQ definitions file; needs no broker when capabilities are named.

    \b
    Example: coditect topology export -c code.review > topology.json
             rabbitmqctl import_definitions topology.json
    """
    named = tuple(check_capability_name(name) for name in capability or [])
    known = named or run_loop(known_capabilities(connections(context), ()))
    write_json(export_definitions(_topology(known), vhost=vhost))


async def _plan(opened: Connections, named: list[str]) -> TopologyPlan:
    topology = _topology(await known_capabilities(opened, named))
    async with opened.broker() as broker:
        return await make_plan(broker, topology, bound=await opened.bindings())


async def _apply(opened: Connections, named: list[str]) -> TopologyPlan:
    topology = _topology(await known_capabilities(opened, named))
    async with opened.broker() as broker:
        return await apply_topology(broker, topology)


def _topology(capabilities: tuple[str, ...]) -> Topology:
    whole = base_topology()
    for name in capabilities:
        whole += capability_queues(name)
    return whole


def _write(plan: TopologyPlan, output: Output, *, missing: str, applied: bool) -> None:
    if output is Output.JSON:
        write_json(
            {
                "clean": plan.clean,
                "steps": [_step_json(step) for step in plan.steps],
                "bindings": _bindings_json(plan),
            }
        )
        return
    changes = [step for step in plan.steps if step.verdict is not ProbeVerdict.SAME]
    rows = [(str(step.kind), step.name, _state(step, missing)) for step in changes]
    rows += [("binding", _way(one), missing) for one in plan.unbound or ()]
    write_table(("kind", "name", "state"), rows)
    for step in plan.of(ProbeVerdict.DIFFERS):
        typer.echo(f"\n{step.kind} {step.name}: {step.fix}")
    same = len(plan.steps) - len(plan.of(ProbeVerdict.DIFFERS) if applied else changes)
    note = (
        f"{BINDINGS_NOTE} ({plan.bindings})" if plan.unbound is None else f"{len(plan.unbound)} bindings are missing."
    )
    say(f"{same} of {len(plan.steps)} are as the code wants them. {note}")


def _way(binding: Binding) -> str:
    return f"{binding.exchange} -> {binding.queue} ({binding.key or 'everything'})"


def _bindings_json(plan: TopologyPlan) -> dict[str, object]:
    if plan.unbound is None:
        return {"declared_again_by_apply": plan.bindings, "note": BINDINGS_NOTE}
    missing = [{"exchange": one.exchange, "queue": one.queue, "key": one.key} for one in plan.unbound]
    return {"declared_again_by_apply": plan.bindings, "missing": missing}


def _state(step: TopologyStep, missing: str) -> str:
    difference = step.difference
    if difference is None:
        return missing
    if not difference.argument:
        return f"differs: {difference.text}"
    current, wanted = difference.current or "none", difference.wanted or "none"
    return f"differs: {difference.argument} is {current}, should be {wanted}"


def _step_json(step: TopologyStep) -> dict[str, object]:
    document: dict[str, object] = {"kind": step.kind, "name": step.name, "state": step.verdict.value}
    if step.difference is not None:
        document |= {
            "argument": step.difference.argument,
            "current": step.difference.current,
            "wanted": step.difference.wanted,
            "broker_says": step.difference.text,
            "fix": step.fix,
        }
    return document
