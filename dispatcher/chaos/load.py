"""What a run works on: workflows of several shapes and direct tasks, kept coming until it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from coditect import After, CoditectError, From, ResultTimeout, Retry, Workflow
from coditect.client import Client
from coditect.model.workflow.definition import Definition, Each, Node
from dispatcher.chaos.work import CAPABILITY
from dispatcher.chaos.work import MOST_ATTEMPTS as TASK_ATTEMPTS
from dispatcher.witness.history import Note, Type

MOST_ATTEMPTS = 12
"""Of a node: a run kills faster than three attempts can bear."""
RETRY = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")
PAUSE_SECONDS = 0.25
COMPLETES = ("completed",)
CANCELED = ("canceled", "completed")
"""How work may end that is canceled on the way."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is under way, how large it is, and how long it takes."""

    workflows: int
    """Under way at once."""
    tasks: int
    """Direct ones, under way at once."""
    width: int
    """Nodes side by side, and in a row."""
    milliseconds: tuple[int, int]
    """Shortest and longest task."""
    flaky: float = 0.05
    """The share of tasks whose first attempt fails."""
    canceled: float = 0.1
    """The share of workflows that are canceled on the way."""
    wait_seconds: float = 300.0
    """How long the end of a workflow is waited for; longer than there are faults, which may hold it up until then."""
    task_seconds: float = 100.0
    """How long that of a direct task is."""


class Load:
    """Draws what is to be done, and notes what became of it."""

    def __init__(self, client: Client, note: Note, random: Random, pace: Pace) -> None:
        self._client = client
        self._note = note
        self._random = random
        self._pace = pace
        self._number = 0
        self.closed = asyncio.Event()
        """Set, nothing new is begun."""
        self.begun = self.ended = 0

    async def keep_coming(self) -> None:
        """Begins anew whatever ends, until it is closed; returns when all has ended."""
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer_approvals())
            async with asyncio.TaskGroup() as work:
                for _ in range(self._pace.workflows):
                    work.create_task(self._again(self.workflow))
                for _ in range(self._pace.tasks):
                    work.create_task(self._again(self.task))
            answering.cancel()

    async def _again(self, one: Callable[[], Awaitable[None]]) -> None:
        while not self.closed.is_set():
            await one()

    # -- direct tasks -----------------------------------------------------------------------------------

    async def task(self) -> None:
        """One direct task, to its end."""
        try:
            handle = await self._client.submit(CAPABILITY, self._work())
        except CoditectError:
            await asyncio.sleep(PAUSE_SECONDS)  # refused, or unknown: then nobody was promised anything
            return
        self._note(Type.INVOKE, "accept", handle.task_id, ends=COMPLETES, most=TASK_ATTEMPTS)
        self._note(Type.OK, "accept", handle.task_id)
        self.begun += 1
        try:
            outcome = await handle.outcome(timeout=self._pace.task_seconds)
        except ResultTimeout:
            self._note(Type.INFO, "end", handle.task_id)
        else:
            self._note(Type.OK, "end", handle.task_id, state=outcome.status.value)
            self.ended += 1

    def _work(self) -> dict[str, object]:
        flaky = self._random.random() < self._pace.flaky
        return {"milliseconds": self._random.randint(*self._pace.milliseconds), "fails": int(flaky)}

    # -- workflows --------------------------------------------------------------------------------------

    async def workflow(self) -> None:
        """One workflow, to its end. Asked for until it is accepted: the key makes that one workflow."""
        self._number += 1
        definition = self._random.choice((self.layers, self.fan, self.chain, self.gate, self.spread))().definition()
        key = f"chaos-{self._number}-{self._random.getrandbits(32):x}"
        while True:
            try:
                run = await self._client.start(definition, key=key)
                break
            except CoditectError as error:
                if not error.retryable and self.closed.is_set():
                    return
                await asyncio.sleep(PAUSE_SECONDS)
        nodes = self._edges(definition)
        joins = {node.name: node.needed for node in definition.nodes if node.needed < len(node.after)}
        to_cancel = self._random.random() < self._pace.canceled
        ends = CANCELED if to_cancel else COMPLETES
        self._note(Type.INVOKE, "accept", run.id, nodes=nodes, joins=joins, most=MOST_ATTEMPTS, ends=ends)
        self._note(Type.OK, "accept", run.id)
        self.begun += 1
        if to_cancel:
            await asyncio.sleep(self._random.randint(*self._pace.milliseconds) / 1000)
            with suppress(CoditectError):  # then nobody knows whether it was; either way it ends
                await run.cancel(reason="chaos")
        try:
            state = await run.wait(timeout=self._pace.wait_seconds)
        except CoditectError:
            self._note(Type.INFO, "end", run.id)
        else:
            self._note(Type.OK, "end", run.id, state=state.value)
            self.ended += 1

    def _edges(self, definition: Definition) -> dict[str, list[str]]:
        """Each node that is executed, and what is executed before it: for a map that is its elements."""
        maps = [node.name for node in definition.nodes if isinstance(node.work, Each)]
        elements = {name: [f"{name}[{number}]" for number in range(self._pace.width)] for name in maps}
        found: dict[str, list[str]] = {}
        for node in definition.nodes:
            before = [one for edge in node.after for one in elements.get(edge.node, [edge.node])]
            found |= dict.fromkeys(elements.get(node.name, [node.name]), before)
        return found

    def layers(self) -> Workflow:
        """Layers of nodes, each after some of the layer before."""
        flow, before = Workflow("layers"), list[Node]()
        for _ in range(self._pace.width):
            layer = []
            for _ in range(self._pace.width):
                after = self._random.sample(before, min(len(before), 2))
                layer.append(self._node(flow, after))
            before = layer
        return flow

    def fan(self) -> Workflow:
        """One, then many, then one after all of them."""
        flow = Workflow("fan")
        first = self._node(flow, [])
        many = [self._node(flow, [first]) for _ in range(2 * self._pace.width)]
        self._node(flow, many)
        return flow

    def chain(self) -> Workflow:
        """One after the other, each with what the one before left."""
        flow = Workflow("chain")
        last = self._node(flow, [])
        for _ in range(2 * self._pace.width):
            work = self._work() | {"after": [From(f"results.{last.name}.token")]}
            last = flow.task(CAPABILITY, work, after=[last], name=f"n{len(flow.definition().nodes)}", retry=RETRY)
        return flow

    def gate(self) -> Workflow:
        """Work, a person, and a join that does not need all."""
        flow = Workflow("gate")
        first = [self._node(flow, []) for _ in range(2)]
        gate = flow.approval("go on?", after=first, name="gate", timeout="1h")
        sides = [self._node(flow, [gate]) for _ in range(self._pace.width)]
        flow.task(
            CAPABILITY,
            self._work(),
            after=[After(side.name, on_failure="allow") for side in sides],  # type: ignore[arg-type]
            name="any_of_them",
            join="any",
            retry=RETRY,
        )
        return flow

    def spread(self) -> Workflow:
        """A task for every element of a list, and one after all of them."""
        flow = Workflow("spread")
        first = self._node(flow, [])
        elements = [str(number) for number in range(self._pace.width)]
        many = flow.map(
            CAPABILITY,
            f"`{json.dumps(elements)}`",
            self._work() | {"after": [From("item")]},
            limit=len(elements),
            after=[first],
            name="many",
            retry=RETRY,
        )
        self._node(flow, [many])
        return flow

    def _node(self, flow: Workflow, after: list[Node]) -> Node:
        number = len(flow._nodes)
        return flow.task(CAPABILITY, self._work(), after=after, name=f"n{number}", retry=RETRY)

    async def _answer_approvals(self) -> None:
        while True:
            with suppress(CoditectError):
                async for row in self._client.approvals(most=100):
                    self._note(Type.INVOKE, "grant", f"{row.workflow}:{row.node}")
                    await self._client.run(row.workflow).answer(row.node, granted=True, by="chaos")
                    self._note(Type.OK, "grant", f"{row.workflow}:{row.node}")
            await asyncio.sleep(4 * PAUSE_SECONDS)
