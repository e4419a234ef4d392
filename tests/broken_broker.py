"""A RabbitMQ that has failed by itself: a test that failed on it runs again, once, on a new one.

RabbitMQ 3.10 keeps its quorum queues by Ra. When one of Ra's processes dies a few times within seconds, as its writer
of segments may when queues are deleted, Ra starts again without the queues, or not at all: publishes to them are
refused, and a channel that consumes from one crashes (541), until the broker is started again. So does one that
declares a queue which dead-letters at least once, when too many of these queues' processes have died. A queue of our
own tells both; a broker that a test may have stopped or cut off does not count. One that no test stops, and that
does not answer for ten seconds, does. The run's warning has the failure and what the broker logged, so that one can
judge whether what was tested had a part in it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiormq
import pytest
from _pytest.runner import runtestprotocol
from aiormq.exceptions import ConnectionInternalError, DeliveryError

PROBE_SECONDS = 10.0
ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-expires": 3_600_000,
    "x-overflow": "reject-publish",
    "x-dead-letter-strategy": "at-least-once",
    "x-dead-letter-exchange": "amq.fanout",
}
"""Those of our queues: what RabbitMQ dead-letters at least once has a process of its own, whose supervisor may end."""
ROUTINE = re.compile(r"closing AMQP|on (AMQP )?connection|caused a channel exception|client unexpectedly closed")
"""What the broker logs of tests that provoke it on purpose."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A broker of the run that several tests use."""

    fixture: str
    amqp_url: str
    log: Path
    queue: str | None = None
    """A quorum queue that was there before any test used the broker; Ra may have lost that and keep new ones."""


BROKERS = pytest.StashKey[list[Watched]]()
BROKEN = pytest.StashKey[str]()


@contextmanager
def watched(config: pytest.Config, broker: Watched) -> Iterator[None]:
    """Look at a broker during the block whenever a test fails that has its fixture."""
    if broker.queue is not None:
        asyncio.run(_use(broker.amqp_url, broker.queue))
    brokers = config.stash.setdefault(BROKERS, [])
    brokers.append(broker)
    try:
        yield
    finally:
        brokers.remove(broker)


async def is_broken(broker: Watched) -> bool:
    """Whether the broker refuses what is published to a quorum queue, ends connections with INTERNAL_ERROR, or hangs.

    Only one with a queue from before all tests counts as hanging: no test stops it.
    """
    for queue in filter(None, (broker.queue, f"probe-{uuid4().hex}")):
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await _use(broker.amqp_url, queue)
        except (DeliveryError, ConnectionInternalError):
            return True
        except asyncio.CancelledError as error:  # aiormq cancels what waits at a connection that the broker closes
            return "INTERNAL_ERROR" in str(error)
        except TimeoutError:
            return broker.queue is not None
        except Exception:  # noqa: BLE001 - whatever else aiormq raises of a broker that is slow, stopped or gone
            return False
    return False


async def _use(amqp_url: str, queue: str) -> None:
    connection = await aiormq.connect(amqp_url)
    try:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True, arguments=ARGUMENTS)
        await channel.basic_publish(b"probe", routing_key=queue)
        await channel.queue_purge(queue)
    finally:
        with suppress(aiormq.AMQPError):
            await connection.close()


def broker_troubles(log: Path, most: int = 100) -> str:
    """The kinds of errors and warnings that a broker logged last; empty without a log."""
    if not log.exists():
        return ""
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - 1_000_000))
        text = lines.read().decode(errors="replace")
    told = re.findall(r"\[(?:error|warning)\] <[\d.]+> +(.*\w.*)", text)
    kinds = {re.sub(r"\d+", "", line): line for line in told if not ROUTINE.search(line)}
    return "\n".join(list(kinds.values())[-most:])


def look_at_brokers(item: pytest.Item, report: pytest.TestReport) -> None:
    """Add to a failure what the test's brokers logged, and note whether one of them is broken."""
    for broker in item.config.stash.get(BROKERS, []):
        if broker.fixture not in _fixtures(item):
            continue
        troubles = broker_troubles(broker.log)
        if troubles:
            report.sections.append(("What a broker of the run logged", troubles))
        if asyncio.run(is_broken(broker)):
            item.stash[BROKEN] = f"{report.longreprtext}\nThe broker logged:\n{troubles}"


def run(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Run a test, and once more with everything new if its broker was broken when it failed; False if it has none."""
    if not {"servers", "breakable"} & _fixtures(item):
        return False
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=following)
    if BROKEN in item.stash:
        item.warn(pytest.PytestWarning(f"RabbitMQ failed, the test ran again. Before:\n{item.stash[BROKEN]}"))
        try:
            item.session._setupstate.teardown_exact(None)  # the servers end with all other fixtures
        except Exception as error:  # noqa: BLE001 - outside of a test it would end the whole run
            item.warn(pytest.PytestWarning(f"RabbitMQ failed, and a fixture at its end: {error!r}"))
        reports = runtestprotocol(item, log=False, nextitem=following)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))
