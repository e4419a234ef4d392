"""The agent of a folder of markdown agents: each file is a capability, done by a language model."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.handlers.context import Context
from coditect.chat.budget import ChatBudget
from coditect.chat.failures import ChatUnavailable
from coditect.chat.port import ChatModel
from coditect.integrations.markdown.conversation import Conversation, FleetTool
from coditect.integrations.markdown.file import MarkdownAgent
from coditect.integrations.tools import OfferedCapabilities
from coditect.model.limits.breaker import Breaker
from coditect.registry.port import Registry

log = logging.getLogger(__name__)

MOST_TOKENS = 100_000
TIMEOUT = "10m"


@dataclass(frozen=True, slots=True)
class ModelRoom:
    """The model, the capabilities that the fleet offers and an attempt's token budget, for a markdown agent's tasks."""

    model: ChatModel
    offers: OfferedCapabilities
    most_tokens: int


def markdown_agent(
    name: str,
    files: Sequence[MarkdownAgent],
    model: Callable[[], AbstractAsyncContextManager[ChatModel]],
    registry: Callable[[], AbstractAsyncContextManager[Registry]],
    *,
    most_tokens: int = MOST_TOKENS,
    slots: int = 8,
) -> Agent:
    """Return the agent whose capabilities are markdown agents, such as `NAME.reviewer` for the agent `reviewer`.

    `model` opens the language model when the agent starts, `registry` the registry that says which tools there are;
    `most_tokens` is the budget of each attempt at a task. A model that does not answer opens the breaker `chat`, and
    its tasks wait.

    Raises:
        SetupError: when a name is none.
    """

    @asynccontextmanager
    async def room(_: Agent) -> AsyncIterator[ModelRoom]:
        async with model() as opened, registry() as known:
            yield ModelRoom(opened, OfferedCapabilities(known.find), most_tokens)

    agent = Agent(name, slots=slots, lifespan=room, description="Markdown agents, done by a language model.")
    breaker = Breaker("chat", on=(ChatUnavailable,))
    for file in files:
        declare = agent.capability(
            f"{name}.{file.name}", description=file.description, timeout=TIMEOUT, breaker=breaker
        )
        declare(_handler(file))
    return agent


def _handler(file: MarkdownAgent) -> Callable[[Any, Context], Awaitable[str]]:
    async def work(given: Any, ctx: Context) -> str:
        room: ModelRoom = ctx.lifespan
        known = await room.offers.as_tools() if file.tools else {}
        tools = [FleetTool(known[tool]) for tool in file.tools if tool in known and known[tool].name != ctx.capability]
        if len(tools) < len(file.tools):
            missing = [tool for tool in file.tools if tool not in known]
            log.warning("Tools of a markdown agent are not offered", extra={"agent": file.name, "missing": missing})
        named = {tool.name: tool for tool in tools}
        talk = Conversation(room.model, ChatBudget(room.most_tokens), named, ctx.request)
        return await talk.answer(file.instructions, given, model=file.model)

    return work
