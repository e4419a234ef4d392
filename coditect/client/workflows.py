"""The workflow lane of a client: submits workflows and durable tasks to the control plane, and finds them again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.client.completion import Completions
from coditect.client.control_plane import ControlPlane
from coditect.client.direct import encoded
from coditect.client.durable import KeptOptions, durable_definition, durable_id, workflow_of
from coditect.client.handle import Handle
from coditect.client.options import SUBMIT_SECONDS, Options, RequestKey, checked_key
from coditect.client.upload import MOST_NODES_OF_A_CHUNK, Upload, cut
from coditect.client.workflow_run import Run
from coditect.errors import CoditectError, InputError, InvalidTask, InvalidWorkflow
from coditect.messaging.event_stream import EventStreams
from coditect.messaging.rpc import Requests
from coditect.model.capability import Priority
from coditect.model.duration import seconds
from coditect.model.task import Task
from coditect.registry.catalogue import CapabilityCatalogue
from coditect.telemetry.tracing.messaging import begin_request
from coditect.telemetry.tracing.port import ended_with
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.workflow import fields
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from coditect.workflow.graph import graph_of, named_capabilities
from coditect.workflow.sub_workflows import child_problems, every_node

log = logging.getLogger(__name__)

MOST_NAMED = 10
"""Number of nodes that a log line names at most."""
Progress = Callable[[int, int], object]
"""A callback with the number of nodes that the control plane has, and the number of all nodes."""


class WorkflowLane:
    """The workflow lane of one client: sends workflows and durable tasks to the control plane."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        *,
        catalogue: CapabilityCatalogue,
        requests: Requests,
        event_stream: EventStreams,
        completions: Completions,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self.control = ControlPlane(broker, requests, clock)
        """The sender of the client's requests to the control plane."""
        self._catalogue = catalogue
        self._requests = requests
        self._event_stream = event_stream
        self._completions = completions

    def run(self, workflow: str, *, new: bool = False) -> Run:
        """Return the handle of a workflow by its id; `new` means that the control plane just accepted the workflow."""
        return Run(workflow, self.control, event_stream=self._event_stream, completions=self._completions, new=new)

    async def start(
        self,
        workflow: Workflow | Definition,
        value: bytes,
        *,
        key: str | RequestKey | None,
        progress: Progress | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Run:
        """Check a workflow, send it to the control plane, and return its handle; see `Client.start`."""
        definition = workflow.definition() if isinstance(workflow, Workflow) else workflow
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
            graph_of(definition, capabilities=known)
            if problems := child_problems(definition, capabilities=known):
                raise InvalidWorkflow.of(problems, workflow=definition.name)
        await self._catalogue.refuse_bytes(named)

    async def _send(self, upload: Upload, timeout_seconds: float, progress: Progress | None) -> Run:
        mine, tracing = str(upload.head["workflow"]), self._requests.tracing
        span = begin_request(tracing, mine, upload.definition.name)
        if span is None:
            return await self._send_chunks(upload, timeout_seconds, progress, {})
        return await ended_with(span, self._send_chunks(upload, timeout_seconds, progress, span.headers()))

    async def _send_chunks(
        self, upload: Upload, timeout_seconds: float, progress: Progress | None, trace: Mapping[str, str]
    ) -> Run:
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
        """Submit a durable task for each value, one after another, and yield the handles; see `Client.submit_many`."""
        source = iter(values)
        while bodies := encoded(source, concurrency):
            for body in bodies:
                yield await self.submit(capability, body, options)

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

    def _handle(self, run: Run, capability: str, priority: Priority) -> Handle:
        task = Task(capability, priority, b"", id=durable_id(run.id))
        return Handle(task, self._requests, self._event_stream, self._broker, _kept=KeptOptions(run))
