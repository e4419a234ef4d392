"""Handoffs with crashes of each party, messages that come twice, late or in another order, and time that passes.

Whatever happens, a fence has one owner, an acceptance is one agent's, and the task has one result: that of the agent
that had it last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Retry
from coditect.errors import InputError
from coditect.model.result import Outcome
from coditect.wire.claims import Claim, Verdict
from coditect.wire.control import Started, Verb
from coditect.workflow.states import TaskState
from dispatcher.coordination.handoffs import rows
from dispatcher.ledger.commands import Asked, Began, Claimed, Command, Finished, GoOn, Lost
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.keyspace import ATTEMPTS
from dispatcher.ledger.rows import AttemptRecord
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.handoffs import OTHERS, OWNER, kept, offers, value_of
from tests.unit.dispatcher.ledger.test_batch import one_node
from tests.unit.dispatcher.lone_ledger import Ledger

NODE = NodeKey("w", "one")
AGENTS = (OWNER, *OTHERS)
STEPS = 60


@dataclass(slots=True)
class Delivery:
    """A publication in the broker or in an agent's hand."""

    publication: Publication
    first: bool = True
    holder: str = ""


@dataclass
class World:
    """The ledger, the agents, and everything that is on its way between them."""

    ledger: Ledger
    random: Random
    alive: set[str] = field(default_factory=lambda: set(AGENTS))
    under: dict[str, set[int]] = field(default_factory=dict)
    """The fences under which each living agent runs the task."""
    owners: dict[int, str] = field(default_factory=dict)
    """The agent that was given each fence."""
    deliveries: list[Delivery] = field(default_factory=list)
    mail: list[tuple[Command, str]] = field(default_factory=list)
    """What is on its way to the ledger, and the agent that a claim is of."""
    offered: list[tuple[str, str]] = field(default_factory=list)
    tickets: int = 0
    looked: int = 0
    published: int = 0
    fence: int = 1
    hops: int = 0
    ends: set[str] = field(default_factory=set)
    """How handoffs ended, and whether a result was refused."""

    async def tell(self, command: Command, agent: str = "") -> None:
        (answer,) = await self.ledger.batch(command)
        assert not isinstance(answer, Exception) or isinstance(answer, InputError), answer
        if isinstance(answer, Claim) and answer.verdict is Verdict.RUN and agent in self.alive:
            self.runs(agent, answer.fence)
        self.deliveries += [Delivery(one) for one in self.ledger.published[self.published :]]
        self.published = len(self.ledger.published)
        for effects in self.ledger.seen[self.looked :]:
            self.offered += [(agent, offer["handoff"]) for agent, offer in offers(effects)]
        self.looked = len(self.ledger.seen)
        await self.check()

    def runs(self, agent: str, fence: int) -> None:
        assert self.owners.setdefault(fence, agent) == agent, f"two owners under fence {fence}"
        self.under.setdefault(agent, set()).add(fence)

    async def check(self) -> None:
        row, handoffs = await self.ledger.node("one"), await kept(self.ledger)
        attempts = await self.ledger.database.read(lambda tr: tr.get_range(*ATTEMPTS.range(NODE)))
        handed = [one.fence for _, row in attempts if (one := AttemptRecord.unpack(row)).status == "handed_off"]
        assert row.fence >= self.fence
        assert handed == [one.fence for one in handoffs if one.state == rows.ACCEPTED]
        assert self.fence in {row.fence, *handed} or len(handed) == self.hops, "it was not the owner who handed it off"
        self.fence, self.hops = row.fence, len(handed)
        assert sum(one.is_open for one in handoffs) <= 1
        assert row.handoffs == sum(one.state == rows.ACCEPTED for one in handoffs)
        assert all(one.by in AGENTS for one in handoffs if one.state == rows.ACCEPTED)

    # -- what may happen ------------------------------------------------------------------------------------

    async def deliver(self) -> None:
        """The broker gives a publication to an agent: to the one that accepted, if it lives."""
        waiting = [one for one in self.deliveries if not one.holder]
        if not waiting or not self.alive:
            return
        one = self.random.choice(waiting)
        agent = one.publication.agent if one.publication.agent in self.alive else self.any_agent()
        one.holder = agent
        owner = one.publication.task.owner
        assert owner is not None
        if one.first and agent == (one.publication.agent or agent):
            self.runs(agent, owner.fence)
        else:
            self.mail.append((Claimed(NODE, one.publication.number, agent), agent))
        one.first = False

    async def arrive(self) -> None:
        """Something arrives at the ledger, in any order; it may arrive once more."""
        if self.mail:
            at = self.random.randrange(len(self.mail))
            command, agent = self.mail[at] if self.random.random() < 0.25 else self.mail.pop(at)
            await self.tell(command, agent)

    async def act(self) -> None:
        """A running agent says that it began, offers the task, or ends it."""
        running = [(agent, fence) for agent, fences in sorted(self.under.items()) for fence in sorted(fences)]
        if not running:
            return
        agent, fence = self.random.choice(running)
        kind = self.random.choice(("begin", "offer", "offer", "end"))
        publications = [one.publication for one in self.deliveries if one.holder == agent]
        number = publications[-1].number if publications else 1
        if kind == "begin":
            started = Started("w", "one", fence, number, agent, 1, self.ledger.now_ms)
            self.mail.append((Began(started), agent))
        elif kind == "offer":
            self.tickets += 1
            self.mail.append((self.request(agent, fence, f"t{self.tickets}"), agent))
        else:
            outcome: Outcome = value_of(agent)
            self.mail.append((Finished(NODE, fence, number, replace(outcome, body=b'"%d"' % fence)), agent))

    def request(self, agent: str, fence: int, ticket: str) -> Asked:
        others = [one for one in AGENTS if one != agent]
        self.random.shuffle(others)
        body: dict[str, Any] = {
            "workflow": "w",
            "node": "one",
            "fence": fence,
            "agent": agent,
            "to": "work.other",
            "capability": self.random.choice(("work.other", "work", "")),
            "candidates": others[: self.random.randint(0, 3)],
            "timeout_ms": self.random.choice((1_000, 20_000)),
            "ticket": ticket,
            "reply_to": f"reply.{agent}",
        }
        return Asked(Verb.HANDOFF_REQUEST, body)

    async def answer(self) -> None:
        """An agent that was asked answers, or does both, or nothing."""
        if self.offered:
            agent, handoff = self.offered.pop(self.random.randrange(len(self.offered)))
            for verb in (Verb.HANDOFF_ACCEPT, Verb.HANDOFF_DECLINE):
                if agent in self.alive and self.random.random() < 0.6:
                    self.mail.append((Asked(verb, {"handoff": handoff, "agent": agent, "reason": "no"}), agent))

    async def withdraw(self) -> None:
        for handoff in await kept(self.ledger):
            if handoff.is_open:
                self.mail.append((Asked(Verb.HANDOFF_WITHDRAW, {"handoff": handoff.id, "by": "ada"}), ""))

    async def pass_time(self) -> None:
        await self.ledger.pass_time(self.random.choice((0.5, 1.0, 11.0)))
        await self.tell(GoOn())

    async def crash(self) -> None:
        """An agent dies: what it had in hand is the broker's again, what it sent may still arrive."""
        if len(self.alive) > 1:
            self.kill(self.any_agent())

    def kill(self, agent: str) -> None:
        self.alive.discard(agent)
        self.under.pop(agent, None)
        for one in self.deliveries:
            if one.holder == agent:
                one.holder = ""

    def any_agent(self) -> str:
        return self.random.choice(sorted(self.alive))

    async def settle(self) -> None:
        """Nothing else goes wrong: what is on its way arrives, and who runs the task ends it."""
        self.alive = set(AGENTS)
        for _ in range(200):
            if (await self.ledger.node("one")).state.terminal:
                return
            await self.ledger.pass_time(5)
            while self.mail:
                await self.arrive()
            if any(not one.holder for one in self.deliveries):
                await self.deliver()
                continue
            row = await self.ledger.node("one")
            if row.state is TaskState.WORKING and row.fence not in self.under.get(row.agent, ()):
                await self.tell(Lost(NODE, row.publication, row.agent))  # it is silent, and has nothing when asked
            for agent, fences in sorted(self.under.items()):
                for fence in sorted(fences):
                    outcome = replace(value_of(agent), body=b'"%d"' % fence)
                    self.mail.append((Finished(NODE, fence, 0, outcome), agent))
        raise AssertionError("the task never ended")


async def story(random: Random) -> World:
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(one_node(retry=Retry(max_attempts=20)))
        world = World(ledger, random)
        world.deliveries = [Delivery(one) for one in ledger.published]
        world.published, world.looked = len(ledger.published), len(ledger.seen)
        acts: list[Callable[[], Awaitable[None]]] = [world.deliver, world.arrive, world.arrive, world.act, world.answer]
        acts += [world.answer, world.arrive]
        rare: list[Callable[[], Awaitable[None]]] = [world.withdraw, world.pass_time, world.crash]
        for _ in range(STEPS):
            await random.choice(rare if random.random() < 0.1 else acts)()
        await world.settle()
        row = await ledger.node("one")
        assert row.state is TaskState.COMPLETED
        completions = [one for effects in ledger.seen for one in effects.results]
        assert completions == [NODE]
        assert row.agent == world.owners[row.fence]
        world.ends = {one.state for one in await kept(ledger)} | {"late" for one in ledger.seen if one.late}
        return world


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
async def test_a_fence_has_one_owner_and_the_task_one_result(seed: int) -> None:
    await story(Random(seed))


async def test_the_stories_have_handoffs_of_every_end_and_results_that_are_refused() -> None:
    told = [(await story(Random(seed))).ends for seed in range(120)]

    assert set().union(*told) >= {"accepted", "declined", "expired", "withdrawn", "late"}
    assert sum("accepted" in ends for ends in told) > 10
    assert sum("late" in ends for ends in told) > 10
