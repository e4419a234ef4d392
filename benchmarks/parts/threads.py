"""Agents that talk: a message in a thread, a request from agent to agent, and the look-up of one among a thousand."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass

from benchmarks.figures import percentile
from benchmarks.parts.graph_sides import fleet
from benchmarks.parts.locks import milliseconds
from benchmarks.parts.sides import Side, alternating
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.talker import ASK, HEAR
from benchmarks.size import Size
from benchmarks.stage import Stage, agent
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.registration import Load, Registration
from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry

NAME = "threads"
TALKER = "benchmarks.programs.talker:agent"
WARM_UP = 50
AGENTS = 1_000
KINDS = 100
"""The capabilities of the registered agents: each is offered by ten of a thousand."""
LEASE_SECONDS = 600.0
PAUSE_SECONDS = 0.005
"""The pause between two messages, so that each finds the listener waiting."""
MOST_MESSAGE_MS = 10.0
MOST_RATIO = 1.5
MOST_LOOK_UP_MS = 5.0


@dataclass(frozen=True, slots=True)
class TalkTimes:
    """The milliseconds of each measured step of a run."""

    messages: tuple[float, ...]
    """A message in a thread, from the call of `say` to the handler of the agent that listens."""
    requests: tuple[float, ...]
    """`ctx.request` of an agent to another one, from the call to the result."""
    by_hand: tuple[float, ...]
    """The round trip of the hand-written aio-pika program."""
    look_ups: tuple[float, ...]
    """The search for the agents that offer a capability, with 1,000 agents registered."""


async def messages(client: Client, count: int) -> list[float]:
    """Say messages in a thread one after the other, and return how long each took to the agent that listens."""
    thread = await client.threads.open("talker")
    hearing = await client.submit(HEAR, thread.id)
    said = []
    for number in range(WARM_UP + count):
        said.append(time.monotonic())
        await thread.say(number)
        await asyncio.sleep(PAUSE_SECONDS)
    await thread.close()
    heard = await hearing.result(list[float], timeout="5m")
    assert len(heard) == len(said), "no message is lost"
    return [(to - since) * 1000 for since, to in zip(said, heard, strict=True)][WARM_UP:]


async def look_ups(url: str, count: int) -> list[float]:
    """Register agents, and return how long each search for a capability takes."""
    async with RedisRegistry(url) as registry:
        for number in range(AGENTS):
            offers = (CapabilitySpec(f"bench.kind.n{number % KINDS}", description="takes part in the benchmark"),)
            agent_id = AgentId(f"registered-{number:08x}")
            await registry.register(
                Registration(agent_id, "registered", "1.0.0", 4, offers), Load(), lease_seconds=LEASE_SECONDS
            )
        found = await registry.find(Search(capability="bench.kind.n7"))
        assert len(found) == AGENTS // KINDS
        return await milliseconds(lambda: registry.find(Search(capability="bench.kind.n7")), count)


async def measure(stage: Stage, size: Size) -> TalkTimes:
    """Measure messages, requests and look-ups, and the hand-written round trip in the same run."""
    order = Order(Mode.SINGLE, 100, size.round_trips // size.rounds)
    by_hand = await alternating(stage, (Side.AIO_PIKA,), order, rounds=size.rounds)
    async with (
        fleet(stage),
        stage.running(agent(TALKER, slots=4)),
        Client.connecting(stage.settings) as client,
    ):
        said = await messages(client, size.round_trips // 2)
        asked = await client.request(ASK, size.round_trips, list[float], timeout="9m")
        found = await look_ups(stage.settings.redis_url, size.round_trips)
    trips = tuple(value for measured in by_hand[Side.AIO_PIKA] for value in measured["milliseconds"])
    return TalkTimes(tuple(said), tuple(asked), trips, tuple(found))


def verdicts(found: TalkTimes) -> tuple[Verdict, ...]:
    """Compare the middle of messages and requests, and the slow end of look-ups, with their bounds."""
    ratio = percentile(found.requests, 50) / percentile(found.by_hand, 50)
    return (
        Verdict("message in a thread p50", percentile(found.messages, 50), Bound.BELOW, MOST_MESSAGE_MS, "ms"),
        Verdict("ctx.request p50 / hand-written round trip p50", ratio, Bound.AT_MOST, MOST_RATIO, "x"),
        Verdict(f"search, {AGENTS:,} agents, p99", percentile(found.look_ups, 99), Bound.BELOW, MOST_LOOK_UP_MS, "ms"),
    )


def figures(found: TalkTimes) -> tuple[Figure, ...]:
    """Return the middle and the slow end of every step."""
    named = {
        "message in a thread": found.messages,
        "ctx.request": found.requests,
        "hand-written round trip": found.by_hand,
        "search": found.look_ups,
    }
    return tuple(
        Figure(f"{name} p{share}", percentile(values, share), "ms")
        for name, values in named.items()
        for share in (50, 99)
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure agents that talk, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found), figures(found), asdict(found))
