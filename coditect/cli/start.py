"""`coditect workflow start` and `pattern`: start a workflow from a file, a pattern or a goal in words."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.options import (
    ShownAnswer,
    WatchOption,
    checked,
    going_on,
    labels_of,
    only_with,
    present,
    read_body,
)
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, json_text, render, say, show
from coditect.cli.terminal.progress import LINE_SECONDS, Show, shown_progress
from coditect.cli.terminal.tables import nodes_table, workflow_fields
from coditect.errors import CoditectError, InputError
from coditect.goals.plan import MAX_GOAL_TOKENS, MOST_PLANS
from coditect.goals.planners import Planner
from coditect.goals.pursuit import GoalResult
from coditect.operations.connections import Connections
from coditect.operations.goals import GoalOrder, pursue_goal
from coditect.operations.workflows import AcceptedWorkflow, failure_of, likely_mistakes
from coditect.settings.settings import read_variables
from coditect.workflow.definition import Definition
from coditect.workflow.patterns.pattern import WorkflowPattern, find_pattern, load_patterns, make_workflow
from coditect.workflow.rows import ApprovalRow, NodeRow, WorkflowRow
from coditect.workflow.states import TaskState, WorkflowState

if TYPE_CHECKING:
    from coditect.client.client import Client

MOST_SHOWN = 10_000
"""The largest number of characters of a value that the text output shows; JSON shows the whole value."""

app = typer.Typer(no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A workflow in YAML, or in JSON by its name.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="NAME=VALUE", help="A label of it; can be repeated.")
]
FolderOption = Annotated[
    list[Path] | None,
    typer.Option("--folder", envvar="CODITECT_PATTERNS", help="A folder with more patterns; can be repeated."),
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option("--with", "-w", metavar="NAME=VALUE", help="A parameter: JSON, or a plain text; can be repeated."),
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option("--templates", envvar="CODITECT_GOALS", help="Plans of goals by words. Default: ask a model."),
]
PlanCapabilityOption = Annotated[
    list[str] | None,
    typer.Option("--capability", "-c", help="What a goal's plans may use, such as 'code.*'; can be repeated."),
]
PlansOption = Annotated[int, typer.Option("--plans", min=1, max=10, help="How many plans of a goal are tried.")]
TokensOption = Annotated[int, typer.Option("--tokens", min=100, help="Most tokens for a goal's plans, in and out.")]


@dataclass(frozen=True, slots=True)
class _Order:
    """A workflow to start; without `wait` it is not followed."""

    definition: Definition
    body: bytes
    key: str | None
    wait: str | None
    labels: Mapping[str, str]


@app.command("start")
def start_workflow(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A workflow in YAML, or in JSON by its name.")
    ] = None,
    body: Annotated[
        str, typer.Option("--input", "-i", help="The workflow's input: JSON, or @file, or - for stdin.")
    ] = "{}",
    pattern: Annotated[
        str | None, typer.Option("--pattern", "-p", help="Start what this pattern becomes, in place of a file.")
    ] = None,
    parameters: ParameterOption = None,
    folder: FolderOption = None,
    goal: Annotated[
        str | None, typer.Option("--goal", "-g", help="Plan this sentence and run the plan, in place of a file.")
    ] = None,
    templates: TemplatesOption = None,
    capability: PlanCapabilityOption = None,
    plans: PlansOption = MOST_PLANS,
    tokens: TokensOption = MAX_GOAL_TOKENS,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", "-k", help="Start it once: a repeated key returns the same run.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print its id and return when it is accepted.")
    ] = False,
    wait: Annotated[
        str, typer.Option(callback=checked, help="The longest time to follow it; afterwards it goes on.")
    ] = "1h",
    label: LabelOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a workflow from a file, a pattern or a goal, and follow it to its end.

    Shows progress and open approvals, then nodes and value; of a goal, each plan and the value.

    Exits 0 when it completed, 1 when it did not, 2 when the file is no workflow, 3 when it did not end in time.

    \b
    Example: coditect workflow start examples/layered.yaml
             coditect workflow start --pattern majority_vote --with 'voters=["a.vote", "b.vote"]' --input '{"q": 1}'
             coditect workflow start --goal "Review and document the module" --templates goals.yaml
    """
    only_with(context, ("pattern",), "parameters", "folder")
    only_with(context, ("goal",), "templates", "capability", "plans", "tokens")
    if (file, pattern, goal).count(None) != 2:
        fix = "FILE; --pattern NAME and --with; or --goal TEXT"
        raise InputError("A workflow is started from a file, a pattern or a goal", fix=fix)
    if goal is not None:
        if detach or label or body != "{}":
            raise InputError("A goal has neither input nor labels, and is followed", fix="leave them and --detach out")
        _run_goal(context, GoalOrder(goal, capability or ["*"], wait, plans, tokens, key), templates, output)
        return
    if pattern is None:
        definition = load_file(Path(file or ""), None)
    else:
        definition = make_workflow(pattern, read_parameters(parameters), folder or ())
    order = _Order(definition, read_body(body), key, None if detach else wait, labels_of(label))
    _run_order(context, order, output)


def _run_order(context: typer.Context, order: _Order, output: Output) -> None:
    """Start a workflow and print its id; or, if awaited, follow it, print nodes and value, and raise if it failed."""
    for sentence in likely_mistakes(order.definition):
        say(sentence)
    ran = run_loop(_run(connections(context), order))
    if isinstance(ran, AcceptedWorkflow):
        render(output, {"workflow": ran.id, "state": ran.state, "new": ran.new}, ran.id)
        return
    row, nodes, value = ran
    render(output, {**asdict(row), "value": value, "nodes": nodes}, *nodes_table(nodes), "", workflow_fields(row))
    if (error := failure_of(row, nodes)) is not None:
        raise error if output is Output.TABLE else typer.Exit(error.exit_code)
    if output is Output.TABLE:
        text = json_text(value)
        show("", FieldsView({"value": text[:MOST_SHOWN]}))
        if len(text) > MOST_SHOWN:
            say(f"{MOST_SHOWN} characters shown of {len(text)}; --output json has them all.")


async def _run(opened: Connections, order: _Order) -> AcceptedWorkflow | tuple[WorkflowRow, list[NodeRow], Any]:
    """Start a workflow; if it is awaited, return its row, nodes and value at its end. It outlives an interrupt."""
    async with opened.fleet() as client:
        run = await client.start(
            order.definition, order.body, idempotency_key=order.key, progress=_sent(), labels=order.labels
        )
        accepted = AcceptedWorkflow(run.id, WorkflowState.ACCEPTED if run.new else await run.state(), run.new)
        if not run.new:
            where = f"ended: {accepted.state}" if accepted.state.terminal else f"still {accepted.state}"
            say(f"already accepted as {run.id}, {where}")
        elif order.wait is not None:
            say(f"{run.id} accepted: {order.definition.name}, {len(order.definition.nodes)} nodes")
        if order.wait is None:
            return accepted
        see = f"It goes on. See it: coditect workflow get {run.id}; end it: coditect workflow cancel {run.id}"
        with going_on(see), shown_progress() as shown:
            following = _Following(client, run.id, shown)
            asking = asyncio.create_task(following.ask())
            try:
                state = await run.wait(timeout=order.wait, seen=following.seen)
            finally:
                asking.cancel()
                await asyncio.wait([asking])
            nodes = [node async for node in run.nodes()]
            value = await run.result() if state is WorkflowState.COMPLETED else None
            return await run.overview(), nodes, value


def _sent() -> Callable[[int, int], None]:
    """Return a function that prints how many nodes of a large workflow were sent, at most once a second."""
    said_at = time.monotonic()

    def sent(nodes: int, of: int) -> None:
        nonlocal said_at
        if nodes < of and time.monotonic() - said_at >= LINE_SECONDS:
            said_at = time.monotonic()
            say(f"{nodes} of {of} nodes sent")

    return sent


class _Following:
    """The display of a running workflow: its progress, and each approval that it waits for, shown once."""

    def __init__(self, client: Client, workflow: str, shown: Show) -> None:
        self._client = client
        self._workflow = workflow
        self._shown = shown
        self._counts: Mapping[TaskState, int] = {}
        self._news = asyncio.Event()
        self._asked = set[str]()

    def seen(self, row: WorkflowRow | None) -> None:
        """Show the progress; if an approval waits and node counts changed, wake `ask`."""
        self._shown(row)
        if row is not None and row.counts.get(TaskState.AWAITING_APPROVAL) and row.counts != self._counts:
            self._counts = row.counts
            self._news.set()

    async def ask(self) -> None:
        """Print each new approval that the workflow waits for, with the commands that answer it, until canceled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                async for approval in self._client.approvals.list():
                    if approval.workflow == self._workflow and approval.node not in self._asked:
                        self._asked.add(approval.node)
                        _say_question(approval)
            except CoditectError:
                self._counts = {}  # the next look asks again


def _say_question(approval: ApprovalRow) -> None:
    ident = shlex.quote(f"{approval.workflow}:{approval.node}")
    say(f"{approval.node} waits for an answer: {approval.question}")
    for verb in ("get", "grant", "deny"):
        say(f"  coditect approval {verb} {ident}")


def load_file(file: Path, capabilities: list[str] | None) -> Definition:
    """Return the workflow of a file, checked against the capabilities if any are given."""
    from coditect.workflow.documents.file import load_workflow

    return load_workflow(file, capabilities=capabilities or None)


@app.command("pattern")
def show_patterns(
    name: Annotated[str | None, typer.Argument(metavar="[PATTERN]", help="Show this one. Default: list all.")] = None,
    rendered: Annotated[
        bool, typer.Option("--render", help="Print the workflow that the pattern becomes with --with, as YAML.")
    ] = False,
    parameters: ParameterOption = None,
    folder: FolderOption = None,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the patterns, the packaged ones and those of folders; or show one, or the workflow that it becomes.

    \b
    Example: coditect workflow pattern escalation
             coditect workflow pattern escalation --render --with first=text.guess --with better=text.think
    """
    if rendered and name is not None:
        from coditect.workflow.documents.file import write_yaml

        made = make_workflow(name, read_parameters(parameters), folder or ())
        typer.echo(write_yaml(made), nl=False)
        return
    if rendered or parameters:
        raise InputError("A pattern is rendered with its parameters", fix="PATTERN --render --with NAME=VALUE")

    async def look() -> ShownAnswer:
        found = load_patterns(folder or ())
        return _patterns(found.values()) if name is None else _pattern(find_pattern(found, name))

    present(look, output, watch=watch)


def _patterns(found: Iterable[WorkflowPattern]) -> ShownAnswer:
    cells = [(pattern.pattern, ", ".join(pattern.parameters), pattern.description) for pattern in found]
    document = [{"pattern": name, "description": text} for name, _, text in cells]
    return ShownAnswer(
        document, (TableView(("pattern", "parameters", "description"), cells, "There are no patterns."),)
    )


def _pattern(found: WorkflowPattern) -> ShownAnswer:
    cells = [
        (key, spec.type.value, "required" if spec.required else json.dumps(spec.default), spec.description)
        for key, spec in found.parameters.items()
    ]
    table = TableView(("parameter", "type", "default", "description"), cells, "The pattern has no parameters.")
    fields = FieldsView({"pattern": found.pattern, "description": found.description})
    return ShownAnswer(found.model_dump(mode="json"), (fields, "", table))


def read_parameters(options: list[str] | None) -> dict[str, object]:
    """Return the options `--with NAME=VALUE` as a dict of parameters; a value that is no JSON is taken as a string."""
    found: dict[str, object] = {}
    for option in options or ():
        name, equals, text = option.partition("=")
        if not equals or name in found:
            raise InputError("A parameter is NAME=VALUE, each once", given=option[:80], fix="--with rounds=3")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _run_goal(context: typer.Context, order: GoalOrder, templates: Path | None, output: Output) -> None:
    """Plan a goal by templates or by a model, run the plans until one completes, and print its value."""
    result = run_loop(_pursue(connections(context), order, templates))
    document = {"value": result.value, "workflow": result.workflow, "failures": list(result.failures)}
    render(output, document, FieldsView({"value": json.dumps(result.value, ensure_ascii=False)}))


async def _pursue(opened: Connections, order: GoalOrder, templates: Path | None) -> GoalResult:
    from coditect.integrations.goals import check_input

    async with _planner(templates, order.tokens) as planner:
        return await pursue_goal(opened, order, planner, check_input, planned=_planned)


@asynccontextmanager
async def _planner(templates: Path | None, tokens: int) -> AsyncIterator[Planner]:
    if templates is not None:
        from coditect.integrations.goals import read_goals

        yield read_goals(templates)
        return
    from coditect.chat.endpoint import open_chat
    from coditect.chat.port import ChatBudget
    from coditect.goals.planners import ChatPlanner
    from coditect.settings.settings import ChatSettings

    async with open_chat(ChatSettings.read(read_variables())) as model:
        yield ChatPlanner(model, ChatBudget(tokens))


def _planned(plan: Definition, workflow: str) -> None:
    say(f"Planned {', '.join(f'{node.name} ({node.title})' for node in plan.nodes)}; workflow {workflow}.")
