"""Every block of code in the documentation does what the page says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from coditect.wire import routing
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
def reader(tmp_path: Path, servers: Servers, page: Path) -> Iterator[Reader]:
    asyncio.run(_forget_dispatchers(servers))
    follower = Reader(tmp_path, servers)
    try:
        yield follower
    finally:
        follower.leave()
        asyncio.run(_clear(servers, _capabilities(page)))


@pytest.mark.servers
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        reader.follow(block)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_block_that_runs_stays_on_this_machine(page: Path) -> None:
    leaving = [
        f"{block.place}: {found[0]}" for block in blocks(page) if block.runs and (found := _LEAVES.search(block.text))
    ]

    assert not leaving


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_mark_belongs_to_a_block(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    marked = [block for block in blocks(page) if block.mark is not Mark.NONE]

    assert len(re.findall(r"^\s*<!-- (?:not run|file|in the background|prints)\b", text, re.MULTILINE)) == len(marked)
    assert all(block.language in RUN_LANGUAGES for block in marked if block.mark is Mark.BACKGROUND)


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
    """No agent offers them any more: other tests share the broker and must not find their queues."""
    async with AmqpBroker(servers.amqp_url, name="tests of the documentation") as broker:
        await remove_queues(broker, capabilities)


async def _forget_dispatchers(servers: Servers) -> None:
    """No dispatcher of another test has been there: `coditect doctor` would miss it."""
    async with AmqpBroker(servers.amqp_url, name="tests of the documentation") as broker:
        await broker.delete_queue(routing.CONTROL_QUEUE)
