"""Every block of code in the documentation does what the page says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from coditect.registry.document import HTTP_PREFIX
from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from coditect.wire import routing
from dispatcher.requests.lessons import QUEUE as LESSONS_QUEUE
from tests.docs.pages import RUN_LANGUAGES, Mark, blocks, pages, pages_with_code
from tests.docs.reader import Reader
from tests.fleet import remove_queues
from tests.servers import ROOT, Servers

# What leaves the machine, whatever the guard of the Python blocks sees.
_LEAVES = re.compile(
    r"\bcurl\b(?!(?:\\\n|[^\n])*http://127\.0\.0\.1)"
    r"|\b(wget|pip3? install|apt(-get)? |git (clone|push|fetch|pull)|docker|brew|dnf)\b"
    r"|https?://(?!127\.0\.0\.1|localhost)"
)
_AGENT_FILE = re.compile(r"\b(?:agents|examples)/\w+\.py\b")
_CAPABILITY = re.compile(r"(?:\.capability\(\s*\"|--capability )([\w.-]+)")


@pytest.fixture
def reader(tmp_path: Path, servers: Servers, commands: Path, page: Path) -> Iterator[Reader]:
    asyncio.run(_clear(servers, _capabilities(page)))
    follower = Reader(tmp_path, servers, commands)
    try:
        yield follower
    finally:
        follower.leave()
        asyncio.run(_clear(servers, _capabilities(page)))


@pytest.mark.servers
@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        reader.follow(block)


def test_blocks_that_run_stay_on_this_machine() -> None:
    leaving = [
        f"{block.place}: {found[0]}"
        for page in pages()
        for block in blocks(page)
        if block.runs and (found := _LEAVES.search(block.text))
    ]

    assert not leaving


def test_each_mark_belongs_to_a_block() -> None:
    for page in pages():
        written = re.findall(
            r"^\s*<!-- (?:not run|file|in the background|prints)\b", page.read_text("utf-8"), re.MULTILINE
        )
        marked = [block for block in blocks(page) if block.mark is not Mark.NONE]

        assert len(written) == len(marked), page
        assert all(block.language in RUN_LANGUAGES for block in marked if block.mark is Mark.BACKGROUND), page


def test_every_example_is_shown_on_a_page() -> None:
    shown = {block.remark for page in pages() for block in blocks(page) if block.mark is Mark.FILE}

    assert {f"examples/{path.name}" for path in (ROOT / "examples").glob("[!_]*.py")} <= shown


def _capabilities(page: Path) -> set[str]:
    """What the agents that the page starts can do."""
    texts = [block.text for block in blocks(page)]
    files = {name for text in texts for name in _AGENT_FILE.findall(text)} | {
        block.remark for block in blocks(page) if block.mark is Mark.FILE
    }
    texts += [(ROOT / name).read_text(encoding="utf-8") for name in files if (ROOT / name).is_file()]
    return {name for text in texts for name in _CAPABILITY.findall(text)}


async def _clear(servers: Servers, capabilities: set[str]) -> None:
    """Remove what other tests would find of a page, or a page of other tests: they share a broker and a Redis."""
    async with AmqpBroker(servers.amqp_url, name="tests of the documentation") as broker:
        await remove_queues(broker, capabilities)
        for left in (routing.CONTROL_QUEUE, LESSONS_QUEUE):  # `coditect doctor` would miss a dispatcher,
            await broker.delete_queue(left)  # and the next dispatcher would learn from this page's failures
    fleet, http = RedisRegistry(servers.redis_url), RedisRegistry(servers.redis_url, prefix=HTTP_PREFIX)
    async with fleet, http:
        for registry in (fleet, http):  # an HTTP agent is in both until its lease ends
            for record in await registry.find(Search()):
                await registry.deregister(record.agent_id)
