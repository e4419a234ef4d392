"""The workflow lane of a client: submits workflows and durable tasks to the control plane, and finds them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.client.direct import encoded
from coditect.client.handle import Handle, durable_definition, durable_id, workflow_of
from coditect.client.listings import workflow_conditions
from coditect.client.options import SUBMIT_SECONDS, Options, RequestKey, checked_key
from coditect.client.workflow_run import WorkflowRun
from coditect.codec import encode_any
from coditect.errors import CoditectError, InputError, InvalidTask, Problem, SetupError, TooLarge
from coditect.messaging.control_plane import ControlPlane, pages
from coditect.messaging.event_stream import EventStreams
from coditect.messaging.rpc import Requests
from coditect.model.capability import Priority
from coditect.model.duration import seconds
from coditect.model.task import Task
from coditect.registry.catalogue import CapabilityCatalogue
from coditect.telemetry.tracing import begin_request, ended_with
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow import fields
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import MAX_WORKFLOW_NODES, Definition, Node
from coditect.workflow.documents.document import child_document, head_document, node_document
from coditect.workflow.graph import check_definition, children_of, every_node, named_capabilities
from coditect.workflow.rows import DeadRow, WorkflowRow
from coditect.workflow.states import WorkflowState
from coditect.workflow.template import node_expressions

log = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""A callback with the number of nodes that the control plane has, and the number of all nodes."""


@dataclass(slots=True, eq=False)
class WorkflowLane:
    """The workflow lane of one client: sends workflows and durable tasks to the control plane."""

    _broker: Broker
    _clock: Clock
    control: ControlPlane
    """The sender of the client's requests to the control plane."""
    _catalogue: CapabilityCatalogue
    _requests: Requests
    _event_stream: EventStreams

    def run(self, workflow: str, *, new: bool = False) -> WorkflowRun:
        """Return the handle of a workflow by its id; `new` means that the control plane just accepted the workflow."""
        return WorkflowRun(workflow, self.control, self._event_stream, new)

    async def start(
        self,
        workflow: Workflow | Definition,
        value: bytes,
        *,
        key: str | RequestKey | None,
        progress: Progress | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> WorkflowRun:
        """Check a workflow, send it to the control plane, and return its handle; see `Workflows.start`."""
        definition = workflow.unchecked() if isinstance(workflow, Workflow) else workflow
        if labels:
            definition = replace(definition, labels=fields.labels({**definition.labels, **fields.labels(labels)}))
        upload = await self._cut(definition, loads(value), key)
        await self._refuse_unknown(definition)
        return await self._send(upload, SUBMIT_SECONDS, progress)

    async def _cut(self, definition: Definition, value: Any, key: str | RequestKey | None) -> Upload:
        if key is not None:
            checked_key("key", key)
        workflow = self._clock.new_id()
        if len(definition.nodes) <= MOST_NODES_OF_A_CHUNK:
            return cut(definition, value, workflow=workflow, key=key)
        # it takes seconds: the loop has other things to do meanwhile
        return await asyncio.to_thread(cut, definition, value, workflow=workflow, key=key)

    async def _refuse_unknown(self, definition: Definition) -> None:
        named = dict.fromkeys(name for node in every_node(definition) for _, name in named_capabilities(node))
        if missing := await self._catalogue.missing(named):
            known = (named.keys() - missing) | await self._catalogue.registered()
            check_definition(definition, capabilities=known)
        await self._catalogue.refuse_bytes(named)

    async def _send(self, upload: Upload, timeout_seconds: float, progress: Progress | None) -> WorkflowRun:
        mine, tracing = str(upload.head["workflow"]), self._requests.tracing
        span = begin_request(tracing, mine, upload.definition.name)
        if span is None:
            return await self._send_chunks(upload, timeout_seconds, progress, {})
        return await ended_with(span, self._send_chunks(upload, timeout_seconds, progress, span.headers()))

    async def _send_chunks(
        self, upload: Upload, timeout_seconds: float, progress: Progress | None, trace: Mapping[str, str]
    ) -> WorkflowRun:
        mine = str(upload.head["workflow"])
        for body, sent in upload.chunks():
            try:
                answer = await self.control.ask(Verb.START, body, timeout=timeout_seconds, trace=trace)
            except CoditectError as error:
                error.facts.setdefault("workflow", mine)  # it may have been accepted all the same
                raise
            if progress is not None:
                progress(sent, len(upload.definition.nodes))
            if (known := str(answer.get("workflow") or mine)) != mine:
                return self.run(known)  # the key was there: an earlier workflow has it
        return self.run(mine, new=True)

    # -- durable tasks ----------------------------------------------------------------------------------

    async def submit(self, capability: str, body: bytes, options: Options) -> Handle:
        """Submit one durable task to the control plane, and return its handle; see `Client.submit`."""
        if options.task_id is not None:
            fix = "give it an idempotency key of your own"
            raise InputError("The control plane names a durable task", parameter="task_id", fix=fix)
        try:
            value = loads(body)
        except InvalidTask as error:
            error.facts["fix"] = "the input of a durable task is JSON; submit bytes as a direct task"
            raise
        definition = durable_definition(capability, value, options, now_ms=self._clock.now_ms())
        upload = await self._cut(definition, None, options.idempotency_key)
        if await self._catalogue.missing([capability]):
            raise await self._catalogue.unknown(capability)
        await self._catalogue.refuse_bytes([capability])
        run = await self._send(upload, seconds(options.submit_timeout), None)
        return self._handle(run, capability, options.priority)

    async def submit_many(
        self, capability: str, values: Iterable[Any], options: Options, *, concurrency: int
    ) -> AsyncGenerator[Handle, None]:
        """Submit a durable task for each value, `concurrency` at once, and yield the handles; see `Client.submit_many`.

        Tasks that are submitted at once share the commits of the control plane.
        """
        source = iter(values)
        while bodies := encoded(source, concurrency):
            submits = (self.submit(capability, body, options) for body in bodies)
            taken = await asyncio.gather(*submits, return_exceptions=True)
            for handle in taken:
                if isinstance(handle, Handle):
                    yield handle
            for error in taken:
                if isinstance(error, BaseException):
                    raise error

    def task(self, task_id: str) -> Handle:
        """Return the handle of a durable task by its id.

        Raises:
            InputError: when the id is not that of a durable task.
        """
        workflow = workflow_of(task_id)
        if workflow is None:
            raise InputError(
                "Only a durable task can be asked for by its id",
                given=task_id,
                fix="submit it with `--detach`, durable=True or an idempotency key; such an id ends in :task",
            )
        return self._handle(self.run(workflow), "", Priority.P1)

    def _handle(self, run: WorkflowRun, capability: str, priority: Priority) -> Handle:
        task = Task(capability, priority, b"", id=durable_id(run.id))
        return Handle(task, self._requests, self._event_stream, self._broker, _run=run)


class Workflows:
    """The workflows that the control plane keeps."""

    def __init__(self, lane: WorkflowLane) -> None:
        self._lane = lane

    async def start(
        self,
        workflow: Workflow | Definition,
        input: Any = None,
        *,
        idempotency_key: str | RequestKey | None = None,
        progress: Progress | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> WorkflowRun:
        """Start a workflow and return its handle.

        The control plane has committed the workflow by then, so that it is not lost.

        The same `idempotency_key` gives the same workflow, however often it is started; `new` of the handle says
        whether this call started it, and the other parameters have no effect if not. The workflow is checked before
        anything is sent, and sent in chunks; `progress(nodes, of)` is called after each chunk. `labels`, by which
        `list` finds it, are added to the workflow's own: at most 16 in all, texts of up to 200 characters.

        Raises:
            InvalidWorkflow: when the definition is wrong, or no agent offers one of its capabilities.
            TooLarge: when a node, or the input, is over the inline limit.
            InvalidTask: when a value cannot be written as JSON.
            ControlPlaneRequired: when no dispatcher answers; it may have accepted the workflow all the same, which an
                idempotency key makes harmless.
            BrokerUnavailable: when the broker is away; the workflow may have been accepted as well. Retryable.
        """
        return await self._lane.start(
            workflow, encode_any(input), key=idempotency_key, progress=progress, labels=labels
        )

    def get(self, workflow: str) -> WorkflowRun:
        """Return the handle of a workflow by its id, also when another process started it; sends no request yet."""
        return self._lane.run(workflow)

    async def list(
        self,
        *,
        state: WorkflowState | None = None,
        name: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[WorkflowRow]:
        """Yield the workflows that the control plane has, the latest first; only those that fit all given conditions.

        `labels` are those that a workflow must have, all of them: `{"team": "x"}`.
        `since` and `until` are instants with their offset from UTC: of the start, or of the tick of a schedule.

        Raises:
            InputError: when `since` or `until` is no such instant, or a label is wrong.
        """
        conditions = workflow_conditions(state=state, name=name, since=since, until=until, labels=labels)
        async for row in pages(self._lane.control, Verb.LIST, "workflows", conditions, limit=limit):
            yield WorkflowRow.read(row)

    async def dead_nodes(self, *, limit: int | None = None) -> AsyncIterator[DeadRow]:
        """Yield the workflow nodes given up because the last attempt's agent died, or its end could not be recorded.

        `get(row.workflow).redrive(row.node.name)` runs a node again.
        """
        async for row in pages(self._lane.control, Verb.DEAD, "dead", {}, limit=limit):
            yield DeadRow.read(row)


# The upload of a workflow to the control plane in chunks, each of which refers only to itself and earlier chunks.
#
# The whole workflow is checked and measured before anything is sent, and each chunk is encoded when its turn comes:
# beside the definition only one chunk is in memory.

MOST_NODES_OF_A_CHUNK = 1_000
MOST_EDGES_OF_A_CHUNK = 5_000
"""Most edges of a chunk; a node with more is a chunk of its own. The control plane writes a chunk in one transaction.
"""
MOST_CHILDREN_BYTES = 512 * 1024
"""The largest size in bytes of the definitions of a workflow's children together."""
SMALLER = "put a reference into the input in place of what is large: a URL, a path"


@dataclass(frozen=True, slots=True)
class Upload:
    """A checked workflow, cut into the chunks in which it is sent to the control plane; made by `cut`."""

    head: dict[str, Any]
    """The fields that every chunk of the workflow carries."""
    input: Any
    """The workflow's input, which the first chunk carries."""
    children: dict[str, Any]
    """The documents of the workflows that nodes run as children, by their names, which the first chunk carries."""
    definition: Definition
    """The definition, with its nodes in topological order."""
    cuts: tuple[int, ...]
    """The index of each chunk's first node, and at the end the number of all nodes."""

    def chunks(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the request body of each chunk, and the number of nodes up to the chunk's end."""
        for number, (start, end) in enumerate(pairwise(self.cuts), 1):
            first = {"input": self.input} | self._children() if number == 1 else {}
            nodes = {node.name: node_document(node) for node in self.definition.nodes[start:end]}
            chunk = {"chunk": number, "chunks": len(self.cuts) - 1, "nodes": nodes}
            yield self.head | first | chunk, end

    def _children(self) -> dict[str, Any]:
        return {"workflows": self.children} if self.children else {}


def cut(definition: Definition, value: Any, *, workflow: str, key: str | RequestKey | None) -> Upload:
    """Check a workflow's definition, graph and expressions, and cut the workflow into chunks.

    Raises:
        InvalidWorkflow: when the graph or an expression is wrong.
        TooLarge: when one node, or the input with the first node, is over the inline limit.
        InvalidTask: when a value cannot be written as JSON.
    """
    graph = check_definition(definition, others=_in_expressions(definition))
    head: dict[str, Any] = {
        "workflow": workflow,
        **head_document(definition),
        "key": key.key if isinstance(key, RequestKey) else key,
        "count": len(graph.order),
        **({"fingerprint": key.fingerprint} if isinstance(key, RequestKey) else {}),
    }
    ordered = replace(definition, nodes=tuple(graph.nodes[name] for name in graph.order))
    children = {child.name: child_document(child) for child in children_of(definition)}
    if len(dumps(children)) > MOST_CHILDREN_BYTES:
        size, fix = len(dumps(children)), "make them smaller: put references in place of large values"
        raise TooLarge("The sub-workflows are over the limit", bytes=size, limit=MOST_CHILDREN_BYTES, fix=fix)
    cuts = _cuts(ordered, head, len(dumps({"input": value, "workflows": children})))
    return Upload(head, value, children, ordered, cuts)


def _in_expressions(definition: Definition) -> tuple[Problem, ...]:
    """Return the problems in a definition's expressions; none if JMESPath is missing: the control plane checks, too."""
    if not any(True for node in every_node(definition) for _ in node_expressions(node)):
        return ()
    try:
        from coditect.workflow.expressions import check_expressions  # noqa: PLC0415 - optional: the extra `workflow`
    except SetupError:
        return ()
    return check_expressions(definition)


def _cuts(definition: Definition, head: dict[str, Any], input_bytes: int) -> tuple[int, ...]:
    room = MAX_BODY_BYTES - len(dumps(head | {"chunk": MAX_WORKFLOW_NODES, "chunks": MAX_WORKFLOW_NODES, "nodes": {}}))
    cuts, used, edges = [0], input_bytes, 0
    for number, node in enumerate(definition.nodes):
        size = _bytes(node)
        if size > room:
            raise TooLarge("A node is over the inline limit", node=node.name, bytes=size, limit=room, fix=SMALLER)
        edges += len(node.after)
        if used + size > room or edges > MOST_EDGES_OF_A_CHUNK or number - cuts[-1] >= MOST_NODES_OF_A_CHUNK:
            if not number:
                raise TooLarge("The workflow's input is over the inline limit", bytes=used, limit=room, fix=SMALLER)
            cuts.append(number)
            used, edges = 0, len(node.after)
        used += size
    return (*cuts, len(definition.nodes))


def _bytes(node: Node) -> int:
    """Return the size of a node in a chunk, in bytes, with its comma."""
    return len(dumps({node.name: node_document(node)}))
