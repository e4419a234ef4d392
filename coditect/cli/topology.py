"""`coditect topology`: compares the exchanges and queues that the code declares with those of the broker."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.broker.port import ProbeVerdict
from coditect.broker.topology import Binding
from coditect.broker.topology_diff import BINDINGS_NOTE, TopologyPlan, TopologyStep
from coditect.cli.connections import complete_capability, connections
from coditect.cli.terminal.output import Aside, Output, OutputOption, TableView, render, say, write_json
from coditect.errors import InputError, TopologyMismatch
from coditect.operations import topology
from coditect.settings.addresses import printable

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


@app.command("apply")
def apply_plan(
    context: typer.Context,
    capability: CapabilitiesOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only compare, and exit 1 when something is missing or differs.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create missing exchanges, queues and bindings. Those that differ are listed and left alone. Idempotent.

    \b
    Example: coditect topology apply --capability hello.greet
             coditect topology apply --dry-run
    """
    compare = topology.plan_topology if dry_run else topology.create_topology
    plan = run_loop(compare(connections(context), capability or (), note=say))
    _write(plan, output, missing="missing: apply creates it" if dry_run else "created", applied=not dry_run)
    if dry_run and not plan.clean:
        raise typer.Exit(1)
    if not dry_run and (differing := plan.of(ProbeVerdict.DIFFERS)):
        raise TopologyMismatch(
            "What differs was left alone", names=[step.name for step in differing], fix="See the table above."
        )


@app.command("export")
def export_topology(
    context: typer.Context,
    agents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH_OR_MODULE]...", help="With --diagrams: agents. Default: those that live."),
    ] = None,
    capability: CapabilitiesOption = None,
    vhost: Annotated[str, typer.Option(help="The virtual host that it is for.")] = "/",
    form: Annotated[
        topology.ExportForm,
        typer.Option("--format", help="definitions for rabbitmqctl, k8s for the Messaging Topology Operator."),
    ] = topology.ExportForm.DEFINITIONS,
    cluster: Annotated[str, typer.Option(help="The RabbitmqCluster that the objects of k8s refer to.")] = "rabbitmq",
    folder: Annotated[
        str | None,
        typer.Option("--diagrams", metavar="FOLDER|-", help="Instead draw the fleet's C4 diagrams there, in Mermaid."),
    ] = None,
) -> None:
    """Write the needed exchanges, queues and bindings for RabbitMQ or Kubernetes; needs no broker with --capability.

    With --diagrams, draw the fleet: context, containers, components. Files of agents need no servers.

    \b
    Example: coditect topology export -c hello.greet > topology.json
             rabbitmqctl import_definitions topology.json
             coditect topology export -c code.review --format k8s | kubectl apply -f -
             coditect topology export --diagrams docs/diagrams agents/reviewer.py
    """
    if folder is not None:
        _draw(context, agents or [], folder)
        return
    if agents:
        raise InputError("Only diagrams are of given agents", fix="--diagrams FOLDER, or --capability NAME")
    document = topology.export_topology(
        connections(context), capability or (), form=form, vhost=vhost, cluster=cluster, note=say
    )
    write_json(run_loop(document))


def _draw(context: typer.Context, agents: list[str], folder: str) -> None:
    from coditect.agent.declaration import load_agents
    from coditect.operations import diagrams

    declared = [agent for target in agents for agent in load_agents(target)]
    members = [
        diagrams.Member(agent.name, tuple(sorted(spec.name for spec in agent.capabilities))) for agent in declared
    ]
    drawn = diagrams.draw(members) if agents else run_loop(diagrams.draw_living(connections(context)))
    if folder == "-":
        typer.echo("\n".join(diagram.mermaid for diagram in drawn), nl=False)
        return
    files = {Path(folder, f"{diagram.level}.mmd"): diagram.mermaid for diagram in drawn}
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError("The diagrams cannot be written there", folder=folder, reason=reason) from error
    for file in files:
        typer.echo(printable(str(file)))


def _write(plan: TopologyPlan, output: Output, *, missing: str, applied: bool) -> None:
    changes = [step for step in plan.steps if step.verdict is not ProbeVerdict.SAME]
    differing = plan.of(ProbeVerdict.DIFFERS)
    rows = [(str(step.kind), step.name, _state(step, missing)) for step in changes]
    rows += [("binding", _way(binding), missing) for binding in plan.unbound or ()]
    fixes = [f"\n{step.kind} {step.name}: {step.fix}" for step in differing]
    same = len(plan.steps) - len(differing if applied else changes)
    if applied:
        note = f"All {plan.bindings} bindings were declared."
    elif plan.unbound is None:
        note = f"{BINDINGS_NOTE} ({plan.bindings})"
    else:
        note = f"{len(plan.unbound)} bindings are missing."
    aside = Aside(f"{same} of {len(plan.steps)} are as the code wants them. {note}")
    render(output, {"clean": plan.clean, **asdict(plan)}, TableView(("kind", "name", "state"), rows), *fixes, aside)


def _way(binding: Binding) -> str:
    return f"{binding.exchange} -> {binding.queue} ({binding.key or 'everything'})"


def _state(step: TopologyStep, missing: str) -> str:
    difference = step.difference
    if difference is None:
        return missing
    if not difference.argument:
        return f"differs: {difference.text}"
    current, wanted = difference.current or "none", difference.wanted or "none"
    return f"differs: {difference.argument} is {current}, should be {wanted}"
