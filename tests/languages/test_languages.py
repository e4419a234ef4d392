"""Clients and agents in other languages, written from the wire format alone, beside ours on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chaos.faults.proxy import fault_proxy
from coditect import Client, TaskFailed
from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Binding, Queue, QueueType, Topology, base_topology, capability_queues
from coditect.model.message import Message
from coditect.settings.settings import Settings
from coditect.wire import routing
from tests.servers import ROOT, Servers
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]
EXAMPLES = ROOT / "examples" / "languages"
REVERSE, SHOUT = "words.reverse", "words.shout"
MOST_LINES = 20
REFUSED = "message nacked|the broker refused the task|nacks received"
UNANSWERED = "no answer within ten seconds|TimeoutException"
"""What the clients say in JavaScript, Go and Java."""
TASKS = 3_000
"""More than an agent does until it is told to end."""
ENDED = 0, 128 + signal.SIGTERM
"""How a process ends that was told to and did what it had to: the JVM's code names the signal."""
JARS = ("com.rabbitmq:amqp-client:5.22.0", "com.google.code.gson:gson:2.11.0", "org.slf4j:slf4j-api:1.7.36")

SHOUTER = """
from coditect import Agent

shouter = Agent("shouter", version="1.0.0")

@shouter.capability("words.shout")
async def shout(words: str) -> str:
    return words.upper()
"""


@dataclass(frozen=True)
class Language:
    """How the programs of one language are run, where their libraries are."""

    name: str
    client: tuple[str, ...]
    agent: tuple[str, ...]
    folder: Path
    source: str
    """The client's file."""


def sh(*words: str, cwd: Path) -> None:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"


def javascript(folder: Path) -> Language:
    sh("npm", "install", "--silent", "--no-audit", "--no-fund", cwd=folder)
    return Language("javascript", ("node", "client.js"), ("node", "agent.js"), folder, "client.js")


def go(folder: Path) -> Language:
    sh("go", "mod", "tidy", cwd=folder)
    sh("go", "build", "-o", "bin/", "./...", cwd=folder)
    return Language("go", (str(folder / "bin/client"),), (str(folder / "bin/agent"),), folder, "client/main.go")


def java(folder: Path) -> Language:
    for jar in JARS:
        sh("mvn", "-q", "dependency:copy", f"-Dartifact={jar}", f"-DoutputDirectory={folder / 'lib'}", cwd=folder)
    run = ("java", "-cp", f"{folder / 'lib'}/*")
    return Language("java", (*run, "Client.java"), (*run, "Agent.java"), folder, "Client.java")


NEEDS = {javascript: "npm", go: "go", java: "mvn"}


@pytest.fixture(scope="module", params=NEEDS, ids=lambda one: one.__name__)
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Language:
    assert shutil.which(NEEDS[request.param]), f"{NEEDS[request.param]} is not installed"
    folder = tmp_path_factory.mktemp("language") / "programs"
    shutil.copytree(EXAMPLES / request.param.__name__, folder)
    found: Language = request.param(folder)
    return found


@pytest.fixture
def environment(servers: Servers) -> dict[str, str]:
    return {**os.environ, "CODITECT_AMQP_URL": servers.amqp_url, "CODITECT_REDIS_URL": servers.redis_url}


@contextmanager
def running(
    words: tuple[str, ...], environment: dict[str, str], cwd: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that says `ready` when it is at work, stopped with the block."""
    with log.open("wb") as said:
        process = subprocess.Popen(words, env=environment, cwd=cwd, stdout=said, stderr=said)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture
async def broker(servers: Servers) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(servers.amqp_url, name="stranger") as opened:
        yield opened


@pytest.fixture
async def queues(environment: dict[str, str], broker: AmqpBroker) -> AsyncIterator[None]:
    """The queues of the agents' capability, which go with what is left in them."""
    words = (sys.executable, "-m", "coditect", "topology", "apply", "--capability", REVERSE)
    subprocess.run(words, env=environment, check=True)
    yield
    for queue in capability_queues(REVERSE).queues:
        await broker.delete_queue(queue.name)


@pytest.fixture
async def answers(broker: AmqpBroker) -> AsyncIterator[str]:
    """A plain queue for answers."""
    queue = Queue("answers.plain", QueueType.CLASSIC)
    await broker.declare(Topology(queues=(queue,)))
    yield queue.name
    await broker.delete_queue(queue.name)


@pytest.fixture
def agent(language: Language, environment: dict[str, str], queues: None, tmp_path: Path) -> Iterator[Path]:
    """An agent in that language at work; its log."""
    log = tmp_path / "agent.log"
    with running(language.agent, environment, language.folder, log):
        yield log


async def begun(agent: Path) -> None:
    await eventually(lambda: "ready" in agent.read_text(), seconds=60.0)


def settings_of(servers: Servers) -> Settings:
    return Settings(amqp_url=servers.amqp_url, redis_url=servers.redis_url)


async def length(broker: AmqpBroker, queue: str) -> int:
    stats = await broker.stats(queue)
    return stats.messages if stats else 0


async def next_message(broker: AmqpBroker, queue: str) -> Message:
    """The next message of a queue, which is taken."""
    found: list[Delivery] = []

    async def looked() -> bool:
        if (delivery := await broker.get(queue)) is not None:
            found.append(delivery)
        return bool(found)

    await eventually(looked, seconds=20.0)
    found[0].ack()
    return found[0].message


async def next_letter(broker: AmqpBroker) -> Message:
    """The next dead letter, which is taken."""
    return await next_message(broker, f"dead.{REVERSE}")


async def test_agent_does_what_our_client_asks(agent: Path, servers: Servers) -> None:
    await begun(agent)
    async with Client.connecting(settings_of(servers)) as client:
        handles = [await client.submit(REVERSE, {"words": f"{n} stressed"}, priority=f"p{n % 3}") for n in range(30)]
        values = [await one.result(timeout="20s") for one in handles]

    assert values == [{"reversed": f"{n} stressed"[::-1]} for n in range(30)]


async def test_agent_s_failure_is_tried_again_answered_and_kept(
    agent: Path, servers: Servers, broker: AmqpBroker
) -> None:
    await begun(agent)
    async with Client.connecting(settings_of(servers)) as client:
        handle = await client.submit(REVERSE, {"words": 42})
        with pytest.raises(TaskFailed, match="words are to be text") as caught:
            await handle.result(timeout="20s")

    letter = await next_letter(broker)
    assert caught.value.facts["attempt"] == 2
    assert letter.headers["x-coditect-reason"] == "handler_error"
    assert [one["attempt"] for one in json.loads(str(letter.headers["x-coditect-errors"]))] == [1, 2]


async def test_agent_that_is_to_end_finishes_what_runs(
    language: Language, environment: dict[str, str], queues: None, broker: AmqpBroker, answers: str, tmp_path: Path
) -> None:
    task, log = Message(b'{"words": "stop"}', reply_to=answers), tmp_path / "agent.log"
    keys = [f"{REVERSE}.p{n % 3}" for n in range(TASKS)]
    await asyncio.gather(*(broker.publish(task, exchange=routing.TASKS, routing_key=key) for key in keys))

    with running(language.agent, environment, language.folder, log) as process:
        await begun(log)
        await eventually(lambda: length(broker, answers), seconds=60.0)

    assert process.returncode in ENDED, log.read_text()
    assert await length(broker, answers) < TASKS, "the agent did all before it ended"

    async def answered_or_waiting() -> bool:
        places = (answers, *(f"tasks.{REVERSE}.p{n}" for n in range(3)))
        return sum([await length(broker, place) for place in places]) == TASKS

    await eventually(answered_or_waiting, seconds=20.0)


async def test_agent_whose_connection_is_lost_works_on_or_ends(
    language: Language, environment: dict[str, str], queues: None, broker: AmqpBroker, answers: str, tmp_path: Path
) -> None:
    task, log = Message(b'{"words": "stop"}', reply_to=answers), tmp_path / "agent.log"
    async with fault_proxy(environment["CODITECT_AMQP_URL"]) as proxy:
        own = {**environment, "CODITECT_AMQP_URL": proxy.url}
        with running(language.agent, own, language.folder, log) as process:
            await begun(log)

            proxy.pipes()[0].cut()
            await broker.publish(task, exchange=routing.TASKS, routing_key=f"{REVERSE}.p0")

            async def ended_or_answered() -> bool:
                return bool(process.poll() or await length(broker, answers))

            await eventually(ended_or_answered)


async def test_agent_that_loses_one_of_its_queues_ends_with_an_error(
    language: Language, environment: dict[str, str], queues: None, broker: AmqpBroker, tmp_path: Path
) -> None:
    log = tmp_path / "agent.log"
    with running(language.agent, environment, language.folder, log) as process:
        await begun(log)

        await broker.delete_queue(f"tasks.{REVERSE}.p1")

        await eventually(lambda: process.poll() is not None)
    assert process.returncode in {1, 2}, log.read_text()


async def test_agent_ends_in_order_at_an_interrupt(
    language: Language, environment: dict[str, str], queues: None, tmp_path: Path
) -> None:
    log = tmp_path / "agent.log"
    with running(language.agent, environment, language.folder, log) as process:
        await begun(log)

        process.send_signal(signal.SIGINT)

        await eventually(lambda: process.poll() is not None)
    assert process.returncode in {0, 128 + signal.SIGINT}, log.read_text()


GARBAGE = {"x-coditect-attempt": "many", "x-coditect-max-attempts": "some", "x-coditect-errors": "none"}


@pytest.mark.parametrize(
    ("headers", "reason", "attempts"),
    [
        ({"x-coditect-deadline": 1}, "expired", 1),
        ({"x-coditect-start-by": "1"}, "expired", 1),
        ({"x-coditect-claim": "coditect.claim.v1"}, "too_large", 1),
        ({"x-coditect-max-attempts": 1}, "handler_error", 1),
        (GARBAGE, "handler_error", 2),
    ],
    ids=["late", "late to start", "large", "one attempt", "headers of garbage"],
)
async def test_agent_gives_up_what_nobody_wants_or_may_not_be_repeated(
    agent: Path, broker: AmqpBroker, headers: dict[str, Any], reason: str, attempts: int
) -> None:
    await begun(agent)
    task = Message(b"no JSON", headers=headers, expiration_ms=60_000)

    await broker.publish(task, exchange=routing.TASKS, routing_key=f"{REVERSE}.p0")

    letter = await next_letter(broker)
    assert (letter.headers["x-coditect-reason"], letter.headers["x-coditect-attempt"]) == (reason, attempts)
    assert letter.expiration_ms is None, "the letter would expire"


async def test_agent_gives_up_what_is_nested_deep_and_works_on(agent: Path, broker: AmqpBroker, answers: str) -> None:
    await begun(agent)
    deep = "[" * 20_000 + "]" * 20_000
    task = Message(deep.encode(), headers={"x-coditect-errors": deep})

    await broker.publish(task, exchange=routing.TASKS, routing_key=f"{REVERSE}.p0")

    assert (await next_letter(broker)).headers["x-coditect-reason"] == "handler_error"
    sound = Message(b'{"words": "stop"}', reply_to=answers)
    await broker.publish(sound, exchange=routing.TASKS, routing_key=f"{REVERSE}.p0")
    assert json.loads((await next_message(broker, answers)).body) == {"reversed": "pots"}


async def test_agent_writes_to_no_queue_but_those_for_answers(agent: Path, broker: AmqpBroker) -> None:
    await begun(agent)
    task = Message(b'{"words": "stop"}', message_id="1", reply_to=f"tasks.{REVERSE}.p2")

    await broker.publish(task, exchange=routing.TASKS, routing_key=f"{REVERSE}.p0")

    letter = await next_letter(broker)
    assert letter.headers["x-coditect-reason"] == "invalid_task"


async def test_agent_answers_to_a_plain_queue(agent: Path, broker: AmqpBroker, answers: str) -> None:
    await begun(agent)
    task = Message(b'{"words": "stop"}', message_id="1", reply_to=answers)

    await broker.publish(task, exchange=routing.TASKS, routing_key=f"{REVERSE}.p0")

    answer = await next_message(broker, answers)
    assert (answer.headers["x-coditect-status"], json.loads(answer.body)) == ("completed", {"reversed": "pots"})
    assert answer.correlation_id == "1"


async def test_agent_rejects_a_workflow_s_task(agent: Path, broker: AmqpBroker) -> None:
    await begun(agent)
    task = Message(b'{"words": "stop"}', message_id="1", headers={"x-coditect-workflow": "1"})

    await broker.publish(task, exchange=routing.TASKS, routing_key=f"{REVERSE}.p0")

    letter = await next_letter(broker)
    assert letter.headers["x-first-death-reason"] == "rejected"
    assert "x-coditect-reason" not in letter.headers, "the agent itself gave it up, and no dispatcher tells the owner"


def asked(language: Language, environment: dict[str, str], capability: str) -> subprocess.CompletedProcess[str]:
    """The language's client, at its end."""
    command = [*language.client, capability, '"hello"']
    return subprocess.run(
        command, cwd=language.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_client_is_answered_by_our_agent(language: Language, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "shouter.py").write_text(SHOUTER)
    ready = tmp_path / "ready"
    words = (sys.executable, "-m", "coditect", "agent", "run", "shouter.py")
    own = {**environment, "CODITECT_READY_FILE": str(ready)}
    with running(words, own, tmp_path, tmp_path / "shouter.log"):
        subprocess.run(["timeout", "60", "sh", "-c", f"until [ -e {ready} ]; do sleep 0.1; done"], check=True)
        done = asked(language, environment, SHOUT)

    assert done.stdout.strip() == 'completed "HELLO"', done.stderr


async def test_client_says_that_the_broker_refused_its_task(
    language: Language, environment: dict[str, str], broker: AmqpBroker
) -> None:
    full = Queue("full", QueueType.CLASSIC, max_length=0)
    await broker.declare(base_topology() + Topology((), (full,), (Binding(routing.TASKS, full.name, full.name),)))

    done = await asyncio.to_thread(asked, language, environment, full.name)
    await broker.delete_queue(full.name)

    assert done.returncode != 0
    assert re.search(REFUSED, done.stderr), done.stderr


async def test_client_that_nobody_answers_ends(
    language: Language, environment: dict[str, str], broker: AmqpBroker
) -> None:
    await broker.declare(base_topology())
    began = time.monotonic()

    done = await asyncio.to_thread(asked, language, environment, "words.unheard")

    assert (done.returncode != 0, done.stdout) == (True, "")
    assert re.search(UNANSWERED, done.stderr), done.stderr
    assert time.monotonic() - began > 9


def test_client_is_short(language: Language) -> None:
    assert len((language.folder / language.source).read_text().splitlines()) <= MOST_LINES
