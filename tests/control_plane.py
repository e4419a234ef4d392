"""A small scripted control plane: answers every verb by its contract, and runs nothing.

What it keeps outlives the event loop that it is served in, as a store would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import base_topology, capability_queues, control_plane
from coditect.errors import CoditectError, InputError, InvalidTask, NotFound, Unroutable
from coditect.model.message import Event, Message
from coditect.model.result import Failure, Outcome, Status
from coditect.wire import routing
from coditect.wire.control import WAIT_MS, Verb, read_request
from coditect.wire.events import event_message
from coditect.wire.json import dumps
from coditect.wire.tasks import result_message
from coditect.workflow.rows import NodeRow, WorkflowRow

NOW = 1_800_000_000_000
SHARDS = 4
TRACEBACK = 'Traceback (most recent call last):\n  File "agent.py", line 7, in review\n'
ENDED = ("completed", "failed", "canceled", "rejected")


@dataclass(slots=True)
class Kept:
    """A workflow that it has."""

    head: dict[str, Any]
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    chunks: int = 0
    state: str = "uploading"
    reason: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    pages: list[dict[str, Any]] = field(default_factory=list)
    """Values of the last nodes, a page at a time."""

    def row(self) -> dict[str, Any]:
        counts: dict[str, int] = {}
        for node in self.nodes.values():
            counts[node["state"]] = counts.get(node["state"], 0) + 1
        return {
            "workflow": self.head["workflow"], "name": self.head["name"], "state": self.state, "shard": 3,
            "counts": counts, "total": len(self.nodes), "accepted_at": NOW, "reason": self.reason,
            "finished_at": NOW + 1_500 if self.state in ENDED else None, "key": self.head["key"] or "",
        }  # fmt: skip

    def end(self, state: str = "completed", **ends: str) -> None:
        """Ends it, each node as the workflow or as it is said."""
        self.state = state
        self.values.clear()
        for name, node in self.nodes.items():
            node |= {"state": ends.get(name, state), "attempt": 1, "fence": 1, "agent": "worker-00000001"}
            node |= {"started_at": NOW + 10, "finished_at": NOW + 1_000}
            if node["state"] == "completed":
                self.values[name] = {"node": name}
            elif node["state"] == "failed":
                node |= {"reason": "handler_error", "message": "no such file"}
                self.failures[name] = Failure("handler_error", "OSError", "no such file", TRACEBACK, fix="Look again")


@dataclass(slots=True)
class ScriptedPlane:
    """What it was asked, what it keeps, and how it misbehaves."""

    kept: dict[str, Kept] = field(default_factory=dict)
    asked: list[tuple[Verb, dict[str, Any]]] = field(default_factory=list)
    identities: list[str | None] = field(default_factory=list)
    """Of what was asked."""
    at_once: bool = True
    """Whether what is accepted has completed."""
    holds: bool = True
    """Whether a request about a state is held until the state is final, as long as its sender allows."""
    ignores: int = 0
    """So many requests are taken and not answered."""
    refuses: list[Failure] = field(default_factory=list)
    """What the next requests are answered with."""
    more: bool = False
    """Whether more begins again by a redrive than it names."""
    compared: bool = True
    """Whether a rebuild compared all of RQ."""
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    lasting: list[dict[str, Any]] = field(default_factory=list)
    """The nodes that a restore would discard and that cannot be undone."""
    triggers: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """Of shared state, by key."""
    breakers: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    """What every approval is about."""
    page: int = 1_000
    """Most rows of one answer."""

    @property
    def only(self) -> Kept:
        """The one workflow that it has."""
        (kept,) = self.kept.values()
        return kept

    def verbs(self) -> list[Verb]:
        return [verb for verb, _ in self.asked]

    @asynccontextmanager
    async def serving(self, broker: Broker, *capabilities: str) -> AsyncIterator[None]:
        """Answers what comes to `control`; the capabilities have their queues."""
        topology = base_topology() + control_plane()
        for capability in capabilities:
            topology += capability_queues(capability)
        await broker.declare(topology)
        async with Supervisor() as background:

            def arrived(delivery: Delivery) -> None:
                background.start(self._answer(broker, delivery), name="answer")

            consumer = await broker.consume(routing.CONTROL_QUEUE, arrived, prefetch=100)
            yield
            await consumer.cancel()

    async def tell(self, broker: Broker, kind: str, workflow: str, **data: Any) -> None:
        """Publishes an event of a workflow, whether anybody listens to it or not."""
        event = Event(kind, "/dispatcher", "event", NOW, workflow, data)
        with suppress(Unroutable):
            await broker.publish(event_message(event), exchange=routing.EVENTS, routing_key=kind)

    async def _answer(self, broker: Broker, delivery: Delivery) -> None:
        message = delivery.message
        name, body = read_request(message)
        verb = Verb(name)
        self.asked.append((verb, body))
        self.identities.append(message.message_id)
        if self.ignores:
            self.ignores -= 1
        else:
            await self._held(body)
            answer = self._outcome(message, verb, body)
            await broker.publish(
                result_message(answer, capability="control"),
                exchange=routing.REPLIES,
                routing_key=message.reply_to or "",
            )
        delivery.ack()

    async def _held(self, body: dict[str, Any]) -> None:
        now = asyncio.get_running_loop().time
        until = now() + body.get(WAIT_MS, 0) / 1000
        while self.holds and now() < until and (kept := self.kept.get(body["workflow"])) is not None:
            node = kept.nodes.get(body.get("node") or "")
            if (kept.state if node is None else node["state"]) in ENDED:
                return
            await asyncio.sleep(0.005)

    def _outcome(self, message: Message, verb: Verb, body: dict[str, Any]) -> Outcome:
        refusal = self.refuses.pop(0) if self.refuses else None
        if refusal is None:
            try:
                return Outcome(Status.COMPLETED, dumps(self._done(verb, body)), None, message.correlation_id)
            except KeyError as error:  # of a request that it knows, a field
                refusal = Failure("refused", "InputError", f"The request has no {error}")
            except CoditectError as error:
                refusal = Failure("refused", type(error).__name__, error.sentence, fix=str(error.facts.get("fix", "")))
        return Outcome(Status.REJECTED, dumps(refusal.as_json()), None, message.correlation_id, failure=refusal)

    def _done(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case Verb.START:
                return self._start(body)
            case Verb.LIST | Verb.DEAD | Verb.APPROVALS | Verb.SCHEDULE_LIST | Verb.TRIGGER_LIST | Verb.BREAKER_LIST:
                return self._listed(verb, body)
            case Verb.STATUS:
                return self._status(body)
            case Verb.REBUILD:
                told = {"shard": body["shard"], "queues": 3, "published": body["shard"], "working": 1, "workflows": 2}
                return told | {"compared": self.compared}
        if "trigger" in body or "space" in body:
            return self._trigger(verb, body) if "trigger" in body else self._value(verb, body)
        return self._schedule(verb, body) if "schedule" in body else self._about(verb, body)

    def _value(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        entry = {"version": 1, "writer": "", "task": "", "at_ms": NOW}
        if verb is Verb.STATE_LIST:
            return {"keys": [entry | {"key": key, "deleted": False} for key in sorted(self.values)], "next": None}
        if verb is Verb.STATE_PUT:
            self.values.pop(body["key"], None)
            self.values |= {body["key"]: body["value"]} if "value" in body else {}
        value = self.values.get(body["key"])
        return entry | {"deleted": value is None, "value": value}

    def _about(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        if "workflow" not in body:
            raise InputError("The control plane of the tests does not know this verb", verb=verb.value)
        kept = self.kept.get(body["workflow"])
        if kept is None:
            raise NotFound("There is no such workflow", fix="coditect workflow list")
        return self._node(verb, body) or self._told(kept, verb, body) or self._steered(kept, verb, body)

    def _listed(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case Verb.LIST:
                rows = [kept.row() for kept in self.kept.values() if body.get("state") in (None, kept.state)]
                return self._paged("workflows", rows, body)
            case Verb.SCHEDULE_LIST:
                return self._paged("schedules", [one for _, one in sorted(self.schedules.items())], body)
            case Verb.TRIGGER_LIST:
                return self._paged("triggers", [one for _, one in sorted(self.triggers.items())], body)
            case Verb.DEAD:
                return self._paged("dead", self._dead(), body)
            case Verb.BREAKER_LIST:
                return {"breakers": self.breakers, "next": None}
        return self._paged("approvals", self._approvals(), body)

    def _node(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case Verb.NODE_INPUT:
                return {"input": {"of": body["node"]}, "evaluated": True, "trace": ""}
            case Verb.APPROVAL_SHOW:
                (row,) = (row for row in self._approvals() if row["node"] == body["node"])
                asked = {"decision": "asked", "question": row["question"], "at_ms": NOW}
                return {"decision": asked, "about": row["about"], "history": []}
        return {}

    def _told(self, kept: Kept, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case Verb.GET:
                return kept.row()
            case Verb.NODES:
                return self._paged("nodes", list(kept.nodes.values()), body)
            case Verb.ATTEMPTS:
                names = [body["node"]] if body.get("node") else list(kept.nodes)
                return self._paged("attempts", [_attempt(kept.nodes[name]) for name in names], body)
            case Verb.RESULT if kept.pages and not body.get("node"):
                number = int(body.get("after", 0))
                following = str(number + 1) if kept.pages[number + 1 :] else None
                return {"state": kept.state, "value": kept.pages[number], "next": following}
            case Verb.RESULT:
                return _result(kept, body.get("node"))
        return {}

    def _status(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Two dispatchers share the shards, the second one answers; a third has none."""
        owner = "dispatcher-2" if "shard" not in body or body["shard"] % 2 else "dispatcher-1"
        counted = {"under_way": 4, "refused": 1, "late": 2, "strange": 0, "unrecorded": 0}
        figures = {"answered_by": {"owner": owner, "shards": [], **counted}}
        if "shard" in body:
            return figures
        rows = [
            {"shard": shard, "owner": f"dispatcher-{1 + shard % 2}", "epoch": 1, "workflows": shard, "under_way": 2}
            for shard in range(SHARDS)
        ]
        return {"shards": rows, "dispatchers": [f"dispatcher-{number}" for number in (1, 2, 3)], **figures}

    def _steered(self, kept: Kept, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case Verb.CANCEL:
                kept.reason = body["reason"]
                kept.end("canceled")
            case Verb.PAUSE:
                kept.state = "paused"
            case Verb.CHECKPOINTS:
                ended = [node for node in kept.nodes.values() if node["state"] == "completed"]
                rows = [{"checkpoint": one["name"], "node": one["name"], "at_ms": NOW, "by": ""} for one in ended]
                return {"checkpoints": rows, "next": None} | {
                    "restores": [{"at_ms": NOW + 5, "by": "ada", "checkpoint": "gate"}]
                }
            case Verb.RESTORE_PLAN:
                rows = [{"node": "a", "state": "completed", "compensated": True}, *self.lasting]
                return {"nodes": rows, "token": "1", "next": None}
            case Verb.RESUME:
                kept.state = "running"
            case Verb.REDRIVE:
                return {"node": body["node"], "again": [body["node"]], "more": self.more, "dry_run": body["dry_run"]}
            case Verb.ANSWER:
                if kept.nodes[body["node"]]["state"] != "awaiting_approval":
                    raise InputError("This node asks for no approval")
                kept.nodes[body["node"]]["state"] = "completed" if body["granted"] else "rejected"
            case Verb.SIGNAL:
                waiting = [name for name, node in kept.nodes.items() if node["state"] == "waiting"]
                return {"node": waiting[0] if waiting else None, "new": True}
        return {"workflow": kept.head["workflow"], "state": kept.state}

    def _start(self, body: dict[str, Any]) -> dict[str, Any]:
        for workflow, other in self.kept.items():
            if body["key"] and other.head["key"] == body["key"] and workflow != body["workflow"]:
                return {"workflow": workflow, "state": other.state, "new": False}
        kept = self.kept.setdefault(body["workflow"], Kept(body))
        if body["chunk"] == kept.chunks + 1:
            kept.chunks += 1
            kept.nodes |= {name: _node(name, document) for name, document in body["nodes"].items()}
        elif body["chunk"] > kept.chunks:
            raise InvalidTask("A chunk of the workflow is missing")
        if body["chunk"] < body["chunks"]:
            return {"workflow": body["workflow"], "state": "uploading"}
        if len(kept.nodes) != body["count"]:
            raise InvalidTask("Nodes of the workflow are missing")
        if kept.state == "uploading":
            kept.state = "running"
            if self.at_once:
                kept.end()
        return {"workflow": body["workflow"], "state": "accepted", "new": True}

    def _schedule(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        if verb is Verb.SCHEDULE_CREATE:
            plain = {"cron": None, "zone": None, "jitter_ms": 0, "overlap": "allow", "catch_up": "latest", "last": None}
            made = {"most_missed": 100, "created_at": NOW, "next": NOW, "last_run": None, "runs": 0, "skipped": 0}
            made["input"] = None
            every = {"every_ms": None if body.get("every") is None else 60_000, "state": "active", "reason": ""}
            given = {field: value for field, value in body.items() if field in plain | made}
            self.schedules[body["schedule"]] = plain | made | every | given | {"schedule": body["schedule"]}
            self.schedules[body["schedule"]]["workflow"] = body["workflow"]["name"]
        if body["schedule"] not in self.schedules:
            raise NotFound("There is no such schedule")
        kept = self.schedules[body["schedule"]]
        match verb:
            case Verb.SCHEDULE_PAUSE:
                kept |= {"state": "paused", "next": None}
            case Verb.SCHEDULE_RESUME:
                kept |= {"state": "active", "next": NOW}
            case Verb.SCHEDULE_RUN:
                kept["reason"] = "overlap" if kept["overlap"] == "skip" else ""
                return {"schedule": body["schedule"], "workflow": None if kept["reason"] else "w"}
            case Verb.SCHEDULE_DELETE:
                del self.schedules[body["schedule"]]
            case Verb.SCHEDULE_CREATE | Verb.SCHEDULE_SHOW:
                pass
            case _:
                raise InputError("The control plane of the tests does not know this verb", verb=verb.value)
        return dict(kept) | {"upcoming": ["2026-01-01T00:00:00+00:00"]}

    def _trigger(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        name = body["trigger"]
        if verb is Verb.TRIGGER_ADD:
            row = dict.fromkeys(("when", "signal", "to", "last", "last_run")) | {"reason": "", "runs": 0, "failed": 0}
            given = {field: value for field, value in body.items() if field in ("trigger", "event", *row)}
            row |= {"state": "active", "created_at": NOW, "workflow": body.get("workflow", {}).get("name")}
            self.triggers[name] = row | given
        if name not in self.triggers:
            raise NotFound("There is no such trigger")
        if verb is Verb.TRIGGER_REMOVE:
            return self.triggers.pop(name)
        if verb is not Verb.TRIGGER_ADD:
            self.triggers[name]["state"] = "paused" if verb is Verb.TRIGGER_PAUSE else "active"
        return self.triggers[name]

    def _dead(self) -> list[dict[str, Any]]:
        return [
            {"workflow": workflow, **node}
            for workflow, kept in self.kept.items()
            for node in kept.nodes.values()
            if node["state"] == "dead"
        ]

    def _approvals(self) -> list[dict[str, Any]]:
        return [
            {"workflow": workflow, "node": name, "name": kept.head["name"], "question": "Ship it?", "since": NOW}
            | {"about": self.about}
            for workflow, kept in self.kept.items()
            for name, node in kept.nodes.items()
            if node["state"] == "awaiting_approval"
        ]

    def _paged(self, field_: str, rows: list[dict[str, Any]], body: Mapping[str, Any]) -> dict[str, Any]:
        begin = int(body["after"] or 0)
        end = begin + min(self.page, body["limit"])
        return {field_: rows[begin:end], "next": str(end) if end < len(rows) else None}


def workflow_row(state: str, **fields: Any) -> WorkflowRow:
    """Return the report of a workflow without nodes, but for the given fields of the control plane's answer."""
    empty = {"workflow": "w", "name": "n", "shard": 0, "counts": {}, "total": 0, "reason": "", "key": None}
    return WorkflowRow.read({**empty, "state": state, "accepted_at": NOW, "finished_at": None, **fields})


def node_row(name: str, state: str, **fields: Any) -> NodeRow:
    """Return the report of a node that nobody has run, but for the given fields of the control plane's answer."""
    return NodeRow.read({**_node(name, {"task": ""}), "state": state, **fields})


def _result(kept: Kept, node: str | None) -> dict[str, Any]:
    name = node or list(kept.nodes)[-1]
    if name not in kept.nodes:
        raise NotFound("The workflow has no such node")
    failure = kept.failures.get(name)
    why = None if failure is None else failure.as_json()
    state = {"state": kept.state} if node is None else {"state": kept.nodes[name]["state"]}
    last = {} if node is None else {"attempt": _attempt(kept.nodes[name])}
    return state | last | {"reason": kept.reason, "value": kept.values.get(name), "failure": why}


def _node(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    edges = document.get("after", [])
    after = [edge if isinstance(edge, str) else edge["node"] for edge in edges]
    kind = next(kind for kind in ("task", "map", "approval") if kind in document)
    return {
        "name": name, "state": "blocked" if after else "ready", "attempt": 0, "fence": 0, "agent": None,
        "capability": None if kind == "approval" else document[kind], "priority": document.get("priority", "p1"),
        "ready_at": None, "published_at": None, "started_at": None, "finished_at": None, "reason": "", "message": "",
        "on_failure": {edge["node"]: edge["on_failure"] for edge in edges if not isinstance(edge, str)},
        "definition": {name: document[name] for name in document if name not in ("after", "input")},
        "after": after, "kind": kind, "question": document.get("approval"), "input": document.get("input"),
    }  # fmt: skip


def _attempt(node: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: node[name] for name in ("attempt", "fence", "reason", "message")}
    times = {"published_at_ms": NOW, "started_at_ms": node["started_at"], "finished_at_ms": node["finished_at"]}
    named = {"node": node["name"], "agent": node["agent"] or "", "status": node["state"]}
    return {**named, "publication": 7, **times, **kept}
