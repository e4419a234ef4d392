"""`coditect topology`: compares the exchanges and queues that the code declares with those of the broker."""

from __future__ import annotations

from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.broker.topology import Binding
from coditect.broker.topology_diff import BINDINGS_NOTE, ProbeVerdict, TopologyPlan, TopologyStep
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_capability
from coditect.cli.terminal.output import Aside, Output, OutputOption, TableView, render, say, write_json
from coditect.errors import TopologyMismatch
from coditect.operations import topology

app = typer.Typer(no_args_is_help=True)

CapabilitiesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--capability",
        "-c",
        help="Its queues, too; can be repeated. Default: what agents offer.",
        autocompletion=complete_capability,
    ),
]


@app.command("plan")
def plan_topology(
    context: typer.Context, capability: CapabilitiesOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Compare the broker's exchanges and queues with the code's. Exits 1 when they differ.

    \b
    Example: coditect topology plan --capability hello.greet
    """
    plan = run_loop(topology.plan_topology(connections(context), capability or (), note=say))
    _write(plan, output, missing="missing: apply creates it", applied=False)
    if not plan.clean:
        raise typer.Exit(1)


@app.command("apply")
def apply_plan(
    context: typer.Context, capability: CapabilitiesOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Create missing exchanges, queues and bindings. Those that differ are listed and left alone. Idempotent.

    \b
    Example: coditect topology apply --capability hello.greet
    """
    plan = run_loop(topology.create_topology(connections(context), capability or (), note=say))
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
    form: Annotated[
        topology.ExportForm,
        typer.Option("--format", help="definitions for rabbitmqctl, k8s for the Messaging Topology Operator."),
    ] = topology.ExportForm.DEFINITIONS,
    cluster: Annotated[
        str, typer.Option("--cluster", help="The RabbitmqCluster that the objects of k8s refer to.")
    ] = "rabbitmq",
) -> None:
    """Write the needed exchanges, queues and bindings for RabbitMQ or Kubernetes; needs no broker with --capability.

    \b
    Example: coditect topology export -c hello.greet > topology.json
             rabbitmqctl import_definitions topology.json
             coditect topology export -c code.review --format k8s | kubectl apply -f -
    """
    document = topology.export_topology(
        connections(context), capability or (), form=form, vhost=vhost, cluster=cluster, note=say
    )
    write_json(run_loop(document))


def _write(plan: TopologyPlan, output: Output, *, missing: str, applied: bool) -> None:
    document = {
        "clean": plan.clean,
        "steps": [_step_json(step) for step in plan.steps],
        "bindings": _bindings_json(plan),
    }
    changes = [step for step in plan.steps if step.verdict is not ProbeVerdict.SAME]
    differing = plan.of(ProbeVerdict.DIFFERS)
    rows = [(str(step.kind), step.name, _state(step, missing)) for step in changes]
    rows += [("binding", _way(one), missing) for one in plan.unbound or ()]
    fixes = [f"\n{step.kind} {step.name}: {step.fix}" for step in differing]
    same = len(plan.steps) - len(differing if applied else changes)
    note = (
        f"{BINDINGS_NOTE} ({plan.bindings})" if plan.unbound is None else f"{len(plan.unbound)} bindings are missing."
    )
    aside = Aside(f"{same} of {len(plan.steps)} are as the code wants them. {note}")
    render(output, document, TableView(("kind", "name", "state"), rows), *fixes, aside)


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
