"""The request server, which gives requests of clients and agents to shard workers, and answers them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from math import inf
from typing import Any

from coditect.broker.port import Delivery
from coditect.errors import (
    CoditectError,
    InputError,
    InvalidTask,
    NotFound,
    Retryable,
    SetupError,
    TooLarge,
    Unroutable,
)
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.telemetry.tracing import Span, TraceHeaders, begin_record
from coditect.wire import routing
from coditect.wire.control import VERB, WAIT_MS, Verb, read_request
from coditect.wire.headers import WORKFLOW_ID, WORKFLOW_NAME, read_trace, with_members
from coditect.wire.json import dumps
from coditect.wire.routing import ReturnAddresses
from coditect.wire.tasks import MAX_BODY_BYTES, result_message
from coditect.wire.workflow_tasks import Claim
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Asked, Claimed, Command
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.handlers import requests
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.ledger.workflows.queries import Body, overview, result, rows_of, unended
from dispatcher.ledger.workflows.status import status
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.ports import Ports
from dispatcher.shards import verbs
from dispatcher.shards.completions import Undone
from dispatcher.shards.ownership import ShardOwnership
from dispatcher.shards.worker import ShardWorker

log = logging.getLogger(__name__)

REQUEST_ANSWER_SECONDS = 30.0
MAX_WAIT_MS = 60_000
"""The longest time for which a request about a state is held."""
FINAL_STATES = frozenset(state.value for state in (*TaskState, *WorkflowState) if state.terminal)
REQUEUE_PAUSE_SECONDS = 0.2
"""The pause before a request that could not be forwarded goes back to its queue."""


Rebuild = Callable[[ShardWorker, str], Coroutine[Any, Any, dict[str, Any]]]
"""A function that rebuilds the shard of a worker for a cause."""
Work = Callable[[], Awaitable[dict[str, Any]]]
Then = Callable[[], Awaitable[None]]
"""A function that is awaited after the commit of a request and before its answer, such as one that makes a queue."""


class RequestServer:
    """The consumer that handles each request of a client or agent at least once.

    A request is acked when it is answered or forwarded, and may come again.
    """

    def __init__(self, ports: Ports, workers: ShardOwnership, *, addresses: ReturnAddresses, rebuild: Rebuild) -> None:
        self._rebuild_shard = rebuild
        self._addresses = addresses
        self._broker, self._database, self._background = ports.broker, ports.database, ports.background
        self._tracing = ports.tracing
        self._workers = workers
        self._own: Mapping[str, Callable[[Delivery, Body], None]] = {
            Verb.CLAIM: self._claim,
            Verb.GET: self._get,
            Verb.RESULT: self._result,
            Verb.STATUS: self._status,
            Verb.REBUILD: self._rebuild,
        }
        """The handlers of verbs that need more than the ledger; `verbs.handling` finds all others."""
        self.on_change: Mapping[str, Callable[[Body], Awaitable[None]]] = {}
        """The functions of verbs that are awaited between commit and answer, such as one that makes a queue."""
        self._rebuilds: dict[tuple[int, str], asyncio.Task[dict[str, Any]]] = {}
        """The running rebuilds by shard and occasion, so that a repeated request shares the running one's answer."""

    def arrived(self, delivery: Delivery) -> None:
        """Answer one request message, or give it to its shard's worker; refuse an invalid one with an answer."""
        try:
            if len(delivery.message.body) > MAX_BODY_BYTES:
                raise TooLarge("A request is over the limit", bytes=len(delivery.message.body), limit=MAX_BODY_BYTES)
            verb, body = read_request(delivery.message)
            if verb in self._own:
                self._own[verb](delivery, body)
            else:
                self._route(delivery, verb, body)
        except InputError as error:
            self.answer(delivery, error)

    def _route(self, delivery: Delivery, verb: str, body: Body) -> None:
        match verbs.handling(verb):
            case requests.Query(read):
                self._reply(delivery, verb, lambda: self._database.ask(lambda tr: read(tr, body)))
            case requests.ShardChange(_, shard_key, own=False) as change:
                identity = identity_of(delivery.message) if change.records_answer(body) else ""
                then, span = self.on_change.get(verb), None
                if verb == Verb.START:
                    body, span = self._traced(delivery.message, body)
                command = Asked(verb, body, identity, until=_until(delivery.message))
                self._hand(delivery, command, shard_key(body), then and partial(then, body), span)
            case _:
                known = sorted(Verb)
                raise InvalidTask("The control plane does not know this verb", given=verb[:80], known=known)

    def _traced(self, message: Message, body: Body) -> tuple[Body, Span | None]:
        """Return a submission's body with trace headers for its nodes' tasks, and the span of a traced last chunk."""
        trace = read_trace(message.headers)
        if not self._tracing.active or number(body, "chunk", 1) < number(body, "chunks", 1):
            return {**body, "trace": trace} if trace or "trace" in body else body, None
        named = {WORKFLOW_ID: str(body.get("workflow")), WORKFLOW_NAME: str(body.get("name"))}
        span = begin_record(self._tracing, routing.CONTROL, TraceHeaders(**trace), named)
        if span is None:
            return {**body, "trace": trace}, None
        if span.sampled:
            span.baggage = with_members(span.baggage, named)
        return {**body, "trace": span.headers()}, span

    def _claim(self, delivery: Delivery, body: Body) -> None:
        node_key = NodeKey(text(body, "workflow"), text(body, "node"))
        max_attempts = number(body, "max_attempts", Retry().max_attempts)
        command = Claimed(node_key, number(body, "publication", 1), text(body, "agent"), max_attempts)
        self._hand(delivery, command, node_key.workflow)

    def _get(self, delivery: Delivery, body: Body) -> None:
        """Answer a request for a workflow's progress, from the shard's status cache or else from the ledger."""
        workflow = text(body, "workflow")
        if body.get(WAIT_MS) is not None:
            self._hold(delivery, Verb.GET, body, lambda: self._recorded(workflow))
        elif (rows := self._remembered(workflow)) is not None:
            self.answer(delivery, overview(workflow, *rows))
        else:
            self._reply(delivery, Verb.GET, lambda: self._recorded(workflow))

    def _result(self, delivery: Delivery, body: Body) -> None:
        """Answer a request for a result from the ledger; that a workflow still runs, from the shard's status cache."""

        async def read() -> dict[str, Any]:
            return await self._database.ask(lambda tr: result(tr, body))

        if body.get(WAIT_MS) is not None:
            self._hold(delivery, Verb.RESULT, body, read)
        elif not body.get("node") and (rows := self._remembered(text(body, "workflow"))) is not None:
            self.answer(delivery, unended(rows[1]))
        else:
            self._reply(delivery, Verb.RESULT, read)

    def _hold(self, delivery: Delivery, verb: str, body: Body, read: Work) -> None:
        """Answer a request about a state when the state is final, or after its `wait_ms`; the shard's owner holds it.

        It is acked before: many may be held, for long. If it is lost with the process, its sender sends it again.
        """
        workflow, seconds = text(body, "workflow"), min(number(body, WAIT_MS, 1), MAX_WAIT_MS) / 1000
        node_key = NodeKey(workflow, str(body.get("node") or ""))
        worker = self._workers.worker_of(workflow)
        if worker is None:
            self._hand_on(delivery, shard_of(workflow, self._workers.count))
            return
        delivery.ack()
        held = self._held(delivery.message, worker, node_key, seconds, read=partial(self._outcome, verb, read))
        self._background.start(held, name=f"held {verb}")

    async def _held(
        self,
        request: Message,
        worker: ShardWorker,
        node_key: NodeKey,
        seconds: float,
        *,
        read: Callable[[], Awaitable[Any]],
    ) -> None:
        with worker.status_cache.waiting(node_key) as turn:
            runs = worker.in_flight.get(node_key) is not None  # which saves a read
            answer = None if runs else await read()
            if runs or (isinstance(answer, dict) and answer["state"] not in FINAL_STATES):
                await asyncio.wait({turn}, timeout=seconds)
                answer = (turn.result() if turn.done() else None) or await read()
        try:
            await self._publish(request, answer)
        except CoditectError as error:
            log.info("The answer to a held request could not be sent", extra={"reason": str(error)})

    def _remembered(self, workflow: str) -> tuple[WorkflowRecord, RunRecord] | None:
        worker = self._workers.worker_of(workflow)
        return None if worker is None else worker.status_cache.get(workflow)

    async def _recorded(self, workflow: str) -> dict[str, Any]:
        """Return a workflow's progress from the ledger, and put a live workflow into the shard's status cache."""
        head, run = await self._database.ask(lambda tr: rows_of(tr, workflow))
        worker = self._workers.worker_of(workflow)
        if worker is not None and not run.state.terminal:
            worker.status_cache.follow(workflow, head)
        return overview(workflow, head, run)

    def _status(self, delivery: Delivery, body: Body) -> None:
        """Answer with the status of all shards, or, if the request names one, of the dispatcher that owns it."""
        if body.get("shard") is None:
            self._reply(delivery, Verb.STATUS, self._status_of_all)
            return
        shard, figures = self._shard(body), self._workers.figures()
        if shard in figures["shards"]:
            self.answer(delivery, {"answered_by": figures})
        else:
            self._hand_on(delivery, shard)

    async def _status_of_all(self) -> dict[str, Any]:
        return await self._database.ask(status) | {"answered_by": self._workers.figures()}

    def _hand(
        self, delivery: Delivery, command: Command, key: str, then: Then | None = None, span: Span | None = None
    ) -> None:
        """Give a request's command to the worker of the shard of `key`, or forward the request to the shard's owner."""
        shard = shard_of(key, self._workers.count)
        size_bytes = len(delivery.message.body)
        if not self._workers.put(shard, command, partial(self._done, delivery, then, span), size_bytes=size_bytes):
            self._hand_on(delivery, shard)

    def _done(self, delivery: Delivery, then: Then | None, span: Span | None, answer: Any) -> None:
        """Answer a request after its command's commit and its follow-up, if any; requeue it if nothing was done."""
        if isinstance(answer, Undone):
            delivery.requeue()
            return
        if span is not None:
            span.end(type(answer).__name__ if isinstance(answer, CoditectError) else "")
        if then is None or isinstance(answer, CoditectError):
            self.answer(delivery, answer)
        else:
            self._background.start(self._followed(delivery, answer, then), name="what follows a request")

    def _shard(self, body: Body) -> int:
        shard = body.get("shard")
        if isinstance(shard, bool) or not isinstance(shard, int) or not 0 <= shard < self._workers.count:
            raise InvalidTask("There is no such shard", given=str(shard)[:80], shards=self._workers.count)
        return shard

    def _rebuild(self, delivery: Delivery, body: Body) -> None:
        shard, occasion = self._shard(body), text(body, "occasion")
        worker = self._workers.workers.get(shard)
        if worker is None or worker.closed:
            self._hand_on(delivery, shard)
        else:
            self._reply(delivery, Verb.REBUILD, partial(self._rebuilt, worker, occasion))

    async def _rebuilt(self, worker: ShardWorker, occasion: str) -> dict[str, Any]:
        key = worker.shard, occasion
        if key not in self._rebuilds:
            work = self._rebuild_shard(worker, occasion)
            self._rebuilds[key] = self._background.start(work, name=f"rebuild shard {worker.shard}", awaited=True)
            self._rebuilds[key].add_done_callback(lambda _: self._rebuilds.pop(key))
        return await asyncio.shield(self._rebuilds[key])

    def _reply(self, delivery: Delivery, verb: str, work: Work) -> None:
        """Answer a request in the background with `work`'s result."""

        async def answered() -> None:
            self.answer(delivery, await self._outcome(verb, work))

        self._background.start(answered(), name=f"request {verb}")

    async def _outcome(self, verb: str, work: Work) -> dict[str, Any] | CoditectError:
        """Return `work`'s result, or the error with which it is refused."""
        try:
            return await work()
        except CoditectError as error:
            return error
        except ValueError as error:
            return InvalidTask("A field of the request is not what it should be", verb=verb, reason=str(error))
        except Exception:  # the boundary of a request: one that is never settled keeps its place among those taken
            log.exception("A request cannot be done; it is refused", extra={"verb": verb})
            return CoditectError("The control plane failed on this", verb=verb)

    def _hand_on(self, delivery: Delivery, shard: int) -> None:
        self._background.start(self._forward(delivery, shard), name="hand on a request")

    async def _forward(self, delivery: Delivery, shard: int) -> None:
        """Publish a request to its shard's control queue, for the shard's owner, and ack it; requeue it if that fails.

        A request that the broker refuses for good is answered with the error.
        """
        try:
            await self._broker.publish(
                delivery.message,
                exchange=routing.CONTROL,
                routing_key=str(shard),
                timeout_seconds=REQUEST_ANSWER_SECONDS,
            )
        except InvalidTask as error:  # handed on again, it would be refused again
            self.answer(delivery, error)
        except CoditectError as error:
            log.info("A request could not be handed on", extra={"shard": shard, "reason": str(error)})
            await asyncio.sleep(REQUEUE_PAUSE_SECONDS)  # whose shard nobody has, and had, would come again at once
            delivery.requeue()
        else:
            delivery.ack()

    def answer(self, delivery: Delivery, answer: Any) -> None:
        """Send a request's answer or error in the background, then ack the request; requeue it if the send failed."""
        if isinstance(answer, Retryable):
            log.info("A request is returned", extra={"reason": str(answer)})
        self._background.start(self._send(delivery, answer), name="answer")

    async def _followed(self, delivery: Delivery, answer: Any, then: Then) -> None:
        """Run a committed request's follow-up, such as making a queue, and answer the request.

        If the follow-up fails, its error is the answer.
        """
        try:
            await then()
        except CoditectError as error:
            answer = error
        await self._send(delivery, answer)

    async def _send(self, delivery: Delivery, answer: Any) -> None:
        try:
            await self._publish(delivery.message, answer)
        except CoditectError as error:
            log.info("An answer could not be sent; its request comes again", extra={"reason": str(error)})
            delivery.requeue()
        else:
            delivery.ack()

    async def _publish(self, request: Message, answer: Any) -> None:
        """Publish the answer to a request; one that can never be sent is logged, or replaced by its refusal.

        Raises:
            CoditectError: when it may be sent later.
        """
        address = self._addresses.find(request.reply_to)
        if address is None or not self._addresses.reachable(address):
            return
        try:
            await self._broker.publish(
                answer_message(request, answer),
                exchange=address.exchange,
                routing_key=address.routing_key,
                timeout_seconds=REQUEST_ANSWER_SECONDS,
                wait_when_full=False,
            )
        except (Unroutable, NotFound) as error:
            log.debug("An answer has no receiver any more", extra={"reason": str(error)})
        except InvalidTask as error:  # sent again, it would be refused again
            log.error("An answer cannot be sent as a message", extra={"reason": str(error)})
            if not isinstance(answer, CoditectError):
                await self._publish(request, _refusal_of(error))
        except SetupError as error:
            if not self._addresses.refused(address, error):
                log.error("No request can be answered", extra={"reason": str(error)})


def identity_of(request: Message) -> str:
    """Return an id that a request shares only with its repetitions; empty without a message or correlation id."""
    request_id = request.message_id or request.correlation_id
    if not request_id:
        return ""
    head = f"{request_id}\0{request.headers.get(VERB)}\0".encode(errors="surrogatepass")
    return hashlib.sha256(head + request.body).hexdigest()


def _until(request: Message) -> float:
    """Return the event loop's time at which a request that arrives now expires, because its sender stops waiting."""
    left_ms = request.expiration_ms
    return inf if left_ms is None else asyncio.get_running_loop().time() + left_ms / 1000


def _refusal_of(error: InvalidTask) -> InvalidTask:
    """Return the refusal in place of an answer that is too large for the broker, or cannot be written as JSON."""
    if isinstance(error, TooLarge):
        return TooLarge("The answer is too large", fix="ask for less: one node, or a page")
    return InvalidTask("The answer cannot be written as JSON", reason=str(error), fix="store values nested less deep")


def answer_message(request: Message, answer: Any) -> Message:
    """Return the result message that answers a request with a value, or with an error as a rejection."""
    correlation = request.correlation_id or request.message_id
    if isinstance(answer, CoditectError):
        refused = requests.refusal_document(answer)
        failure = Failure(
            "refused",
            refused["type"],
            answer.sentence,
            retryable=answer.retryable,
            fix=str(answer.facts.get("fix", "")),
        )
        document = failure.as_json() | {"facts": refused["facts"]}
        return result_message(Outcome(Status.REJECTED, dumps(document), None, correlation), capability="control")
    value = answer.as_json() if isinstance(answer, Claim) else answer
    return result_message(Outcome(Status.COMPLETED, dumps(value), None, correlation), capability="control")
