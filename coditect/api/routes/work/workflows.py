"""The routes of workflows: start, list, show and steer them, and answer what they wait for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, Cursor, IdempotencyKey, Limit, Wait, Who, own_key, request_key
from coditect.api.services import Services, needs
from coditect.client.listings import ATTEMPTS, NODES, WORKFLOWS, ListingPage, run_conditions
from coditect.client.workflow_run import Run
from coditect.errors import InputError, NotFound, ResultTimeout
from coditect.operations.dead_letters.settling import redrive_node
from coditect.operations.workflows import requests as workflows
from coditect.operations.workflows.history import WorkflowEvent, workflow_history
from coditect.operations.workflows.requests import AcceptedWorkflow, Steer
from coditect.settings.api import TRACE
from coditect.telemetry.tracing.port import sampled_trace
from coditect.wire.json import dumps
from coditect.workflow.definition import Definition
from coditect.workflow.documents.file import read_workflow
from coditect.workflow.graph import graph_of
from coditect.workflow.rows import AttemptRow, NodeRow, WorkflowRow
from coditect.workflow.states import WorkflowState

router = APIRouter(prefix="/workflows", tags=["workflows"])
steered = APIRouter(prefix="/workflows", tags=["workflows"], dependencies=[needs(Role.OPERATOR)])


WorkflowDefinition = Annotated[
    dict[str, Any] | str,
    Field(
        description="The definition, as an object, or as the text of a YAML file.",
        examples=[{"name": "review", "nodes": {"read": {"task": "code.review", "input": {"$from": "input"}}}}],
    ),
]


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


@steered.post("", status_code=HTTPStatus.CREATED)
async def start_workflow(
    order: WorkflowRequest, services: Services, who: Who, response: Response, key: IdempotencyKey = None
) -> AcceptedWorkflow:
    """Start a workflow, and return its id and state; the control plane keeps it when this answers.

    A repeated Idempotency-Key gives the workflow that has it, with the status 200.
    """
    definition, kept_key = definition_of(order.workflow), request_key(who, key, order)
    async with services.opened.fleet() as client:
        run = await client.start(definition, order.input, key=kept_key, labels=order.labels)
        return await accepted(run, response)


async def accepted(run: Run, response: Response) -> AcceptedWorkflow:
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


@router.post("/check")
async def check_workflow(order: WorkflowRequest) -> CheckedWorkflow:
    """Check a definition and start nothing; return its size and warnings; the answer 422 lists all its mistakes."""
    definition = definition_of(order.workflow)
    graph = graph_of(definition)
    return CheckedWorkflow(definition.name, len(graph.nodes), len(graph.layers), workflows.likely_mistakes(definition))


@router.get("")
async def list_workflows(
    services: Services,
    state: WorkflowState | None = None,
    name: Annotated[str | None, Query(max_length=200)] = None,
    since: Annotated[str | None, Query(description="Started then or later: 2026-12-24T08:00Z.")] = None,
    until: Annotated[str | None, Query(description="Started before that.")] = None,
    label: Annotated[list[str] | None, Query(description="NAME=VALUE; can be repeated.", max_length=16)] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> ListingPage[WorkflowRow]:
    """List the workflows that the control plane keeps, the latest first."""
    asked = run_conditions(state=state, name=name, since=since, until=until, labels=_labels(label or []))
    async with services.opened.fleet() as client:
        return await client.page(WORKFLOWS, asked, cursor=cursor, limit=limit)


@router.get("/{workflow}")
async def show_workflow(workflow: str, services: Services, wait: Wait = None) -> WorkflowRow:
    """Show a workflow's state, counts of nodes and times, not its value; wait for its end at most as long as `wait`."""
    async with services.opened.fleet() as client:
        run = client.run(workflow)
        if wait is not None:
            with suppress(ResultTimeout):
                await run.wait(timeout=wait)
        return await run.overview()


@router.get(
    "/{workflow}/result",
    responses={202: {"description": "The workflow has not ended; ask again, or wait longer.", "model": NotEnded}},
)
async def get_result(workflow: str, services: Services, response: Response, wait: Wait = None) -> Any:
    """Return the workflow's value; 409 when it ended without one, 202 when it has not ended."""
    async with services.opened.fleet() as client:
        try:
            return await client.run(workflow).result(timeout=wait or "1ms")
        except ResultTimeout:
            response.status_code = HTTPStatus.ACCEPTED
            return NotEnded(workflow)


@router.get("/{workflow}/nodes")
async def list_nodes(
    workflow: str, services: Services, cursor: Cursor = None, limit: Limit = 1_000
) -> ListingPage[NodeRow]:
    """List a workflow's nodes by name, with their states, agents and times, without inputs and values."""
    async with services.opened.fleet() as client:
        return await client.page(NODES, {"workflow": workflow}, cursor=cursor, limit=limit)


@router.get("/{workflow}/attempts")
async def list_attempts(
    workflow: str, services: Services, cursor: Cursor = None, limit: Limit = 1_000
) -> ListingPage[AttemptRow]:
    """List the attempts of a workflow's nodes: by which agent, when, and with what outcome."""
    async with services.opened.fleet() as client:
        return await client.page(ATTEMPTS, {"workflow": workflow}, cursor=cursor, limit=limit)


@router.get("/{workflow}/nodes/{node}")
async def show_node(workflow: str, node: str, services: Services) -> NodeDocument:
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


@router.get("/{workflow}/history")
async def show_history(workflow: str, services: Services) -> list[WorkflowEvent]:
    """List what happened to a workflow, the earliest first."""
    return await workflow_history(services.opened, workflow)


@steered.post("/{workflow}/cancel")
async def cancel_workflow(workflow: str, order: Cancellation, services: Services) -> WorkflowRow:
    """Cancel a workflow: no node starts any more, and running nodes are asked to stop."""
    return await _steer(services, workflow, Steer.CANCEL, order.reason, compensate=order.compensate)


@steered.post("/{workflow}/pause")
async def pause_workflow(workflow: str, services: Services) -> WorkflowRow:
    """Pause a workflow: no further node of it is sent to agents until it is resumed."""
    return await _steer(services, workflow, Steer.PAUSE)


@steered.post("/{workflow}/resume")
async def resume_workflow(workflow: str, services: Services) -> WorkflowRow:
    """Resume a paused workflow, or run a failed one again from its failed nodes; a canceled one is refused."""
    return await _steer(services, workflow, Steer.RESUME)


@steered.post("/{workflow}/nodes/{node}/redrive")
async def redrive(workflow: str, node: str, order: NodeRedrive, services: Services) -> dict[str, Any]:
    """Run again a node that ended without a value; `again` names the nodes that begin again (with `dry_run`: would)."""
    value = None if order.input is None else dumps(order.input)
    return await redrive_node(services.opened, workflow, node, value, dry_run=order.dry_run)


@steered.post("/{workflow}/signals/{name}")
async def send_signal(
    workflow: str, name: str, order: Signal, services: Services, who: Who, key: IdempotencyKey = None
) -> dict[str, str]:
    """Send a signal to a workflow; return the `node` that waited for it, empty if the signal is kept until one does."""
    identity = order.id or own_key(who, key)
    node = await workflows.signal_workflow(services.opened, workflow, name, order.value, identity=identity)
    return {"node": node}


def definition_of(given: dict[str, Any] | str) -> Definition:
    """Return the workflow definition that a request contains, as JSON or as YAML text, after checking it.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    return read_workflow(given.encode()) if isinstance(given, str) else read_workflow(dumps(given), is_json=True)


async def _steer(
    services: Services, workflow: str, what: Steer, reason: str = "", *, compensate: bool = True
) -> WorkflowRow:
    await workflows.steer_workflow(services.opened, workflow, what, reason=reason, compensate=compensate)
    async with services.opened.fleet() as client:
        return await client.run(workflow).overview()


def _labels(given: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError("A label is a name and its value", given=text[:80], fix="label=team=x")
        labels[name] = value
    return labels
