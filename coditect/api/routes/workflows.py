"""The routes of workflows: start, list, show and steer them, by their checkpoints too, or start them of a pattern."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from coditect.api.access import Role
from coditect.api.routes.parameters import ApiRequest, Cursor, IdempotencyKey, Limit, Wait, Who, own_key, request_key
from coditect.api.services import Fleet, GuardedRouter, Services, needs
from coditect.client.listings import ATTEMPT_PAGES, NODE_PAGES, WORKFLOW_PAGES, ListingPage, workflow_conditions
from coditect.client.workflow_run import RestorePlan, WorkflowRun
from coditect.errors import InputError, NotFound, ResultTimeout
from coditect.operations import workflows
from coditect.operations.trace import Hop, task_path
from coditect.operations.workflows import AcceptedWorkflow, WorkflowEvent, workflow_history
from coditect.settings.settings import TRACE
from coditect.telemetry.tracing import sampled_trace
from coditect.wire.json import dumps
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.file import read_workflow
from coditect.workflow.documents.reader import definition_of
from coditect.workflow.graph import graph_of
from coditect.workflow.patterns.pattern import WorkflowPattern, find_pattern, load_patterns, make_workflow
from coditect.workflow.render import draw_mermaid, draw_text
from coditect.workflow.rows import CheckpointRow, NodeRow, WorkflowRow
from coditect.workflow.states import WorkflowState

workflow_router = GuardedRouter(prefix="/workflows", tags=["workflows"])


WorkflowDefinition = Annotated[
    dict[str, Any] | str,
    Field(
        description="The definition, as an object, or as the text of a YAML file.",
        examples=[{"name": "review", "nodes": {"read": {"task": "code.review", "input": {"$from": "input"}}}}],
    ),
]


async def _run(workflow: str, client: Fleet) -> WorkflowRun:
    return client.workflows.get(workflow)


Run = Annotated[WorkflowRun, Depends(_run)]
"""The type of a route's parameter that takes the workflow of the path."""


class WorkflowRequest(ApiRequest):
    """A workflow to start or check: its definition, its input, and its labels."""

    workflow: WorkflowDefinition
    input: Any = Field(default=None, description="The workflow's input.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=16)


class Cancellation(ApiRequest):
    """A request to cancel a workflow: the reason, and whether completed nodes are undone where they say how."""

    reason: str = Field(default="", max_length=1_000)
    compensate: bool = Field(default=True, description="Whether completed nodes are undone where they say how.")


class Signal(ApiRequest):
    """A signal to send to a workflow: a JSON value, and an id by which a repetition counts once."""

    value: Any = None
    id: str | None = Field(
        default=None, min_length=1, max_length=200, description="A signal with the same id counts once."
    )


class NodeRedrive(ApiRequest):
    """A request to run again a node that ended without a value: a new input if wanted, or only a preview."""

    input: Any = Field(default=None, description="In place of the recorded input.")
    dry_run: bool = Field(default=False, description="Only say which nodes would begin again.")


@dataclass(frozen=True, slots=True)
class NodeDocument:
    """A node of a workflow with its attempts and its input, and its value or failure once it has ended."""

    node: NodeRow
    attempts: list[AttemptRow]
    input: Any
    """What its task was given; null before the expressions of the input are evaluated."""
    evaluated: bool
    trace: str
    """The id of the trace that it belongs to; empty when none is recorded."""
    trace_url: str | None
    """Where a tracing tool shows the trace; null unless CODITECT_API_TRACE_URL says so."""
    value: Any
    failure: dict[str, Any] | None


@workflow_router.post("", status_code=HTTPStatus.CREATED)
async def start_workflow(
    order: WorkflowRequest, client: Fleet, who: Who, response: Response, key: IdempotencyKey = None
) -> AcceptedWorkflow:
    """Start a workflow, and return its id and state; the control plane keeps it when this answers.

    A repeated Idempotency-Key gives the workflow that has it, with the status 200.
    """
    definition, kept_key = read_definition(order.workflow), request_key(who, key, order)
    run = await client.start(definition, order.input, idempotency_key=kept_key, labels=order.labels)
    return await accepted(run, response)


async def accepted(run: WorkflowRun, response: Response) -> AcceptedWorkflow:
    """Return a started workflow's id and state; set the HTTP header Location, and the status: 201 if new, else 200."""
    state = WorkflowState.ACCEPTED if run.new else await run.state()
    response.headers["location"] = f"/v1/workflows/{run.id}"
    response.status_code = HTTPStatus.CREATED if run.new else HTTPStatus.OK
    return AcceptedWorkflow(run.id, state, run.new)


@dataclass(frozen=True, slots=True)
class NotEnded:
    """The answer 202 to the question for a workflow's value, as long as the workflow has not ended."""

    workflow: str


@dataclass(frozen=True, slots=True)
class CheckedWorkflow:
    """The answer to the check of a definition without mistakes: name, size and warnings; not the definition."""

    workflow: str
    """The workflow's name."""
    nodes: int
    layers: int
    warnings: list[str]
    """What is allowed, and likely not meant."""


@workflow_router.post("/check", dependencies=[needs(Role.VIEWER)])
async def check_workflow(order: WorkflowRequest) -> CheckedWorkflow:
    """Check a definition and start nothing; return its size and warnings; the answer 422 lists all its mistakes."""
    definition = read_definition(order.workflow)
    graph = graph_of(definition)
    return CheckedWorkflow(definition.name, len(graph.nodes), len(graph.layers), workflows.likely_mistakes(definition))


@workflow_router.get("")
async def list_workflows(
    client: Fleet,
    state: WorkflowState | None = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    since: Annotated[str | None, Query(description="Started then or later: 2026-12-24T08:00Z.")] = None,
    until: Annotated[str | None, Query(description="Started before that.")] = None,
    label: Annotated[list[str] | None, Query(description="NAME=VALUE; can be repeated.", max_length=16)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> ListingPage[WorkflowRow]:
    """List the workflows that the control plane keeps, the latest first."""
    asked = workflow_conditions(state=state, name=name, since=since, until=until, labels=_labels(label or []))
    return await client.page(WORKFLOW_PAGES, asked, cursor=cursor, limit=limit)


@workflow_router.get("/{workflow}")
async def get_workflow(run: Run, wait: Wait = None) -> WorkflowRow:
    """Show a workflow's state, counts of nodes and times, not its value; wait for its end at most as long as `wait`."""
    if wait is not None:
        with suppress(ResultTimeout):
            await run.wait(timeout=wait)
    return await run.overview()


@workflow_router.get(
    "/{workflow}/result",
    responses={202: {"description": "The workflow has not ended; ask again, or wait longer.", "model": NotEnded}},
)
async def get_result(run: Run, response: Response, wait: Wait = None) -> Any:
    """Return the workflow's value; 409 when it ended without one, 202 when it has not ended."""
    try:
        return await run.result(timeout=wait or "1ms")
    except ResultTimeout:
        response.status_code = HTTPStatus.ACCEPTED
        return NotEnded(run.id)


@workflow_router.get("/{workflow}/nodes")
async def list_nodes(workflow: str, client: Fleet, cursor: Cursor = None, limit: Limit = 1_000) -> ListingPage[NodeRow]:
    """List a workflow's nodes by name, with their states, agents and times, without inputs and values."""
    return await client.page(NODE_PAGES, {"workflow": workflow}, cursor=cursor, limit=limit)


@workflow_router.get("/{workflow}/attempts")
async def list_attempts(
    workflow: str, client: Fleet, cursor: Cursor = None, limit: Limit = 1_000
) -> ListingPage[AttemptRow]:
    """List the attempts of a workflow's nodes: by which agent, when, and with what outcome."""
    return await client.page(ATTEMPT_PAGES, {"workflow": workflow}, cursor=cursor, limit=limit)


@workflow_router.get("/{workflow}/nodes/{node}")
async def get_node(workflow: str, node: str, services: Services) -> NodeDocument:
    """Show one node with its attempts, its input and trace, and its value or failure once it has ended."""
    found = await workflows.show_workflow(services.opened, workflow, node)
    given, ending = found.input, found.ending
    if not found.nodes or given is None:
        raise NotFound("The workflow has no such node", workflow=workflow, node=node)
    trace, url = sampled_trace(given.trace), services.trace_url
    return NodeDocument(
        found.nodes[0],
        found.attempts,
        given.value,
        given.evaluated,
        trace,
        url.replace(TRACE, trace) if url and trace else None,
        None if ending is None else ending.value,
        None if ending is None or ending.failure is None else dict(ending.failure),
    )


@workflow_router.get("/{workflow}/history")
async def get_history(workflow: str, services: Services) -> list[WorkflowEvent]:
    """List what happened to a workflow, the earliest first."""
    return await workflow_history(services.opened, workflow)


@workflow_router.post("/{workflow}/cancel")
async def cancel_workflow(order: Cancellation, run: Run) -> WorkflowRow:
    """Cancel a workflow: no node starts any more, and running nodes are asked to stop."""
    await run.cancel(reason=order.reason, compensate=order.compensate)
    return await run.overview()


@workflow_router.post("/{workflow}/pause")
async def pause_workflow(run: Run) -> WorkflowRow:
    """Pause a workflow: no further node of it is sent to agents until it is resumed."""
    await run.pause()
    return await run.overview()


@workflow_router.post("/{workflow}/resume")
async def resume_workflow(run: Run) -> WorkflowRow:
    """Resume a paused workflow, or run a failed one again from its failed nodes; a canceled one is refused."""
    await run.resume()
    return await run.overview()


@workflow_router.post("/{workflow}/nodes/{node}/redrive")
async def redrive(node: str, order: NodeRedrive, run: Run) -> dict[str, Any]:
    """Run again a node that ended without a value; `again` names the nodes that begin again (with `dry_run`: would)."""
    value = None if order.input is None else dumps(order.input)
    return await run.redrive(node, value, dry_run=order.dry_run)


@workflow_router.post("/{workflow}/signals/{name}")
async def send_signal(name: str, order: Signal, run: Run, who: Who, key: IdempotencyKey = None) -> dict[str, str]:
    """Send a signal to a workflow; return the `node` that waited for it, empty if the signal is kept until one does."""
    return {"node": await run.signal(name, order.value, id=order.id or own_key(who, key))}


def read_definition(given: dict[str, Any] | str) -> Definition:
    """Return the workflow definition that a request contains, as JSON or as YAML text, after checking it.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    return read_workflow(given.encode()) if isinstance(given, str) else read_workflow(dumps(given), is_json=True)


def _labels(given: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError("A label is a name and its value", given=text[:80], fix="label=team=x")
        labels[name] = value
    return labels


checkpoint_router = GuardedRouter(prefix="/workflows/{workflow}", tags=["workflows"])


class Restore(ApiRequest):
    """A restore to carry out, named by the token of its plan."""

    token: str = Field(description="The `token` of the plan: the restore is refused when the workflow has gone on.")


@checkpoint_router.get("/checkpoints")
async def list_checkpoints(run: Run) -> list[CheckpointRow]:
    """List a workflow's checkpoints, the earliest first: one for each completed node, and those made on request."""
    return await run.checkpoints()


@checkpoint_router.put("/checkpoints/{name}", status_code=HTTPStatus.NO_CONTENT)
async def make_checkpoint(name: str, run: Run) -> None:
    """Give the present position of a workflow a name."""
    await run.checkpoint(name)


@checkpoint_router.get("/checkpoints/{name}/plan")
async def plan_restore(name: str, run: Run) -> RestorePlan:
    """Show what a restore to a checkpoint would discard; nothing is changed."""
    return await run.plan_restore(name)


@checkpoint_router.post("/checkpoints/{name}/restore", status_code=HTTPStatus.NO_CONTENT)
async def restore_workflow(name: str, order: Restore, run: Run, who: Who) -> None:
    """Restore a workflow to a checkpoint, as planned; answer 412 when it has gone on since the plan."""
    await run.restore(RestorePlan(name, (), order.token), by=who.name)


trace_router = GuardedRouter()


@trace_router.get("/tasks/{task_id}/trace", tags=["tasks"])
async def trace_task(task_id: str, services: Services, capability: str | None = None) -> Hop:
    """Show the path of a task, from the ledger and from what messages carry: every attempt, by whom, how long."""
    return await task_path(services.opened, task_id, capability=capability)


@trace_router.get("/workflows/{workflow}/trace", tags=["workflows"])
async def trace_workflow(workflow: str, services: Services) -> Hop:
    """Show the path of a workflow as a tree of nodes, attempts and child workflows."""
    return await task_path(services.opened, workflow)


@trace_router.get(
    "/workflows/{workflow}/graph",
    tags=["workflows"],
    response_class=PlainTextResponse,
    responses={200: {"description": "The drawing.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def draw_workflow(workflow: str, services: Services, form: Literal["text", "mermaid"] = "mermaid") -> Response:
    """Draw a workflow's graph with the states of its nodes, as text or as a Mermaid flowchart."""
    name, rows = await workflows.show_nodes(services.opened, workflow)
    draw = draw_text if form == "text" else draw_mermaid
    return PlainTextResponse(draw(definition_of(name, rows), {row.name: row.state for row in rows}))


FOLDERS = "CODITECT_PATTERNS"
"""The variable with the folders of further patterns, separated as in PATH; the command line reads it, too."""

pattern_router = GuardedRouter(prefix="/patterns", tags=["patterns"])


class PatternSummary(BaseModel):
    """A pattern in a list: its name, what it is for, and the names of its parameters."""

    pattern: str
    description: str
    parameters: list[str]


class PatternArguments(ApiRequest):
    """The values from which a pattern makes a workflow, by the names of its parameters."""

    parameters: dict[str, Any] = Field(default_factory=dict, description="Values by the names of parameters.")


class PatternOrder(PatternArguments):
    """The request to start a workflow from a pattern: the parameters' values, and the workflow's input and labels."""

    input: Any = Field(default=None, description="The workflow's input.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=16)


@pattern_router.get("")
def list_patterns(services: Services) -> list[PatternSummary]:
    """List the patterns (workflows with parameters): packaged ones, and those in the folders of CODITECT_PATTERNS."""
    found = load_patterns(_folders(services.opened.environ)).values()
    return [
        PatternSummary(pattern=one.pattern, description=one.description, parameters=list(one.parameters))
        for one in found
    ]


@pattern_router.get("/{name}")
def show_pattern(name: str, services: Services) -> WorkflowPattern:
    """Show one pattern: its parameters, and the workflow into which their values are put."""
    return find_pattern(load_patterns(_folders(services.opened.environ)), name)


@pattern_router.post("/{name}/render", dependencies=[needs(Role.VIEWER)])
def render_pattern(name: str, order: PatternArguments, services: Services) -> dict[str, Any]:
    """Return the workflow that a pattern and values for its parameters make; start nothing; 422 lists wrong values."""
    return to_document(make_workflow(name, order.parameters, _folders(services.opened.environ)))


@pattern_router.post("/{name}/start", status_code=HTTPStatus.CREATED)
async def start_pattern(
    name: str,
    order: PatternOrder,
    services: Services,
    client: Fleet,
    who: Who,
    response: Response,
    key: IdempotencyKey = None,
) -> AcceptedWorkflow:
    """Start the workflow that a pattern and values make; a repeated Idempotency-Key gives the one that has it (200)."""
    folders = _folders(services.opened.environ)
    made = await asyncio.to_thread(make_workflow, name, order.parameters, folders)
    kept_key = request_key(who, key, order, of=name)
    run = await client.start(made, order.input, idempotency_key=kept_key, labels=order.labels)
    return await accepted(run, response)


def _folders(environ: Mapping[str, str]) -> list[Path]:
    return [Path(folder) for folder in environ.get(FOLDERS, "").split(os.pathsep) if folder]


routers = (workflow_router, checkpoint_router, trace_router, pattern_router)
