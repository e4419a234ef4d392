"""An agent of the fleet whose capabilities are the skills of a remote A2A agent."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from a2a.types.a2a_pb2 import AgentCard, AgentSkill

from coditect.agent.declaration import Agent
from coditect.agent.handlers.context import Context
from coditect.errors import InputError, SetupError
from coditect.integrations.a2a.parts import plain
from coditect.integrations.a2a.remote.agent import RemoteAgent
from coditect.integrations.a2a.serving.card import SCHEMAS
from coditect.integrations.described import described
from coditect.integrations.http.failures import AgentLost, AgentRefused, AnswerBroken
from coditect.model.limits.breaker import Breaker
from coditect.settings.a2a import A2A_DEFAULTS, A2aSettings

DEFAULT_TIMEOUT = "5m"
MOST_SKILLS = 200
_UNFIT = re.compile(r"[^a-z0-9_.-]+")
_JOINTS = re.compile(r"[-_]*\.[-_.]*")


async def a2a_agent(
    name: str,
    url: str,
    *,
    prefix: str | None = None,
    slots: int = 8,
    timeout: str = DEFAULT_TIMEOUT,
    settings: A2aSettings = A2A_DEFAULTS,
    breaker: Breaker | None = None,
) -> Agent:
    """Return an agent with a capability for each skill of a remote A2A agent, such as `partner.translate`.

    The remote agent is asked for its card now. `prefix` comes before each skill's id, the agent's name by default;
    `timeout` bounds one task. The breaker, `a2a:NAME` by default, opens when the remote agent is away or answers what
    is none of A2A; tasks then wait, and no attempt of theirs counts.

    Raises:
        SetupError: when the agent cannot be called, has no skills, or a skill cannot be declared.
        CoditectError: the errors of `RemoteAgent.card`.
    """
    remote = RemoteAgent(url, settings=settings)
    card = await remote.card()
    guard = breaker or Breaker(f"a2a:{name}", on=(AgentRefused, AgentLost, AnswerBroken))
    skills = _skills(card, remote.url, prefix or name)

    @asynccontextmanager
    async def lifespan(_: Agent) -> AsyncIterator[None]:
        async with remote.open(card):
            yield

    agent = Agent(name, slots=slots, lifespan=lifespan, description=f"The skills of an A2A agent: {remote.url}")
    schemas = _schemas(card)
    for capability, skill in skills.items():
        declare = agent.capability(
            capability, timeout=timeout, description=(skill.description or skill.name)[:1_000], breaker=guard
        )
        declare(_handler(remote, skill.id, schemas.get(skill.id)))
    return agent


def _skills(card: AgentCard, url: str, prefix: str) -> dict[str, AgentSkill]:
    """Return the skills of a card, each under the name of the capability that it becomes."""
    if not 0 < len(card.skills) <= MOST_SKILLS:
        fix = "the agent may show them to callers with a token only: CODITECT_A2A_TOKEN"
        raise SetupError("A remote agent has 1 to 200 skills", url=url, skills=len(card.skills), fix=fix)
    skills: dict[str, AgentSkill] = {}
    for skill in card.skills:
        name = f"{prefix}.{_JOINTS.sub('.', _UNFIT.sub('-', skill.id.lower())).strip('-_.') or 'skill'}"
        if (other := skills.setdefault(name, skill)) is not skill:
            ids = [other.id[:100], skill.id[:100]]
            raise SetupError("Two skills of a remote agent have one name", capability=name[:200], skills=ids)
    return skills


def _schemas(card: AgentCard) -> Mapping[str, Any]:
    """Return the JSON Schemas of skills by skill id; empty unless the card has Coditect's extension with them."""
    found = next((one for one in card.capabilities.extensions if one.uri == SCHEMAS), None)
    try:
        return {} if found is None else plain(found.params)
    except InputError as error:
        raise SetupError("The schemas of the agent card are broken", reason=str(error)) from error


def _handler(remote: RemoteAgent, skill: str, schemas: Any) -> Callable[..., Any]:
    async def call(task: Any, ctx: Context) -> Any:
        # An id of its own for each attempt: an agent that knows messages would give a failed task again.
        return await remote.call(skill, task, f"{ctx.task_id}/{uuid4()}", ctx.progress)

    shapes = {
        kind: one for kind, one in (schemas.items() if isinstance(schemas, dict) else ()) if isinstance(one, dict)
    }
    call.__annotations__ = {
        "task": described(shapes.get("input", {})),
        "ctx": Context,
        "return": described(shapes.get("output", {})),
    }
    return call
