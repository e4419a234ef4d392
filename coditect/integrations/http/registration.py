"""What an HTTP agent registers, and how its registration becomes an ordinary `Agent`."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from coditect.agent.declaration import MOST_QUEUED, Agent
from coditect.agent.handlers.context import Context
from coditect.errors import InputError, SetupError
from coditect.integrations.described import described
from coditect.integrations.http.addresses import AllowedHosts
from coditect.integrations.http.failures import AgentLost, AnswerBroken
from coditect.integrations.http.forwarding import TOPIC
from coditect.integrations.http.link import AgentLink
from coditect.model.capability import LONGEST_SECONDS, CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.limits.breaker import Breaker, BreakerScope
from coditect.model.registration import Registration
from coditect.registry.document import encode_registration

BASE_URL = "base_url"
"""The key of an HTTP agent's URL in the metadata of its registration."""
MOST_BYTES = 256 * 1024
MOST_CAPABILITIES = 200
MOST_SLOTS = 1_000
Text = Annotated[str, Field(max_length=1_000)]


class HttpCapability(BaseModel):
    """A capability in the registration of an HTTP agent: name, schemas, cost and time limit."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    description: str = ""
    input_schema: dict[str, Any] = {}
    """JSON Schema of the parameters."""
    output_schema: dict[str, Any] = {}
    """JSON Schema of the result."""
    tags: list[Text] = []
    cost: float = 1.0
    timeout_seconds: float = Field(default=300.0, gt=0, le=LONGEST_SECONDS)
    """Longest run of one attempt, at most seven days; above ten minutes it takes durable tasks."""
    max_queued: int | None = Field(default=None, ge=1, le=MOST_QUEUED)
    """The number of waiting tasks from which the broker refuses more; the same for all agents of the capability."""


class HttpRegistration(BaseModel):
    """The registration of an agent that speaks only HTTP."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str
    """Lower-case letters, digits, - and _; several agents may have the same name."""
    base_url: str
    """The URL below which the agent serves `/agent-request`."""
    capabilities: list[HttpCapability | str] = Field(min_length=1, max_length=MOST_CAPABILITIES)
    """The capabilities, or their names alone."""
    version: Text = "0.0.0"
    description: str = ""
    tags: list[Text] = []
    slots: int = Field(default=1, ge=1, le=MOST_SLOTS)
    """How many requests the agent takes at once."""
    metadata: dict[Text, Text] = Field(default={}, max_length=64)

    def checked(self, hosts: AllowedHosts, *, now_ms: int) -> Registration:
        """Return the registration as the registry keeps it, after checks of its URL, its size and its capabilities.

        The id follows from name and URL, so that registering again changes the registration and keeps the agent.

        Raises:
            InputError: when the URL's host is not allowed, or the declaration is wrong; the error says what to write.
        """
        url = hosts.check(self.base_url)
        given = [HttpCapability(name=one) if isinstance(one, str) else one for one in self.capabilities]
        found = Registration(
            agent_id=AgentId(f"{self.name}-{sha256(url.encode()).hexdigest()[:8]}"),
            name=self.name,
            version=self.version,
            slots=self.slots,
            capabilities=tuple(_spec(one) for one in given),
            tags=frozenset(self.tags),
            started_at_ms=now_ms,
            metadata={**self.metadata, BASE_URL: url} | ({"description": self.description} if self.description else {}),
        )
        if len(encode_registration(found)) > MOST_BYTES:
            raise InputError("The registration is too large", most_bytes=MOST_BYTES, fix="shorten schemas and metadata")
        try:
            http_agent(found, None)
        except SetupError as error:
            error.facts.pop("at", None)
            raise InputError(error.sentence, **error.facts) from error
        return found


def _spec(given: HttpCapability) -> CapabilitySpec:
    return CapabilitySpec(
        name=given.name,
        description=given.description,
        input_schema=given.input_schema,
        output_schema=given.output_schema,
        cost=given.cost,
        tags=frozenset(given.tags),
        timeout_seconds=given.timeout_seconds,
        max_queued=given.max_queued,
    )


def http_agent(registration: Registration, link: AgentLink | None) -> Agent:
    """Return the `Agent` that posts its tasks to an HTTP agent; if `link` is None, it is only checked, never run.

    The agent's breaker opens when its URL fails: its tasks wait for it then, or for another agent, and no attempt
    counts. An action that the agent answers with an error is no failure of the URL.

    Raises:
        SetupError: when the registration cannot be declared.
    """
    agent = Agent(
        registration.name,
        version=registration.version,
        slots=registration.slots,
        tags=registration.tags,
        description=registration.metadata.get("description", ""),
    )
    if link is not None:
        agent.on_broadcast(TOPIC)(link.answered)
    failures = (AgentLost, AnswerBroken, TimeoutError)
    breaker = Breaker(f"http {registration.agent_id}", on=failures, scope=BreakerScope.LOCAL)
    for spec in registration.capabilities:
        declare = agent.capability(
            spec.name,
            timeout=spec.timeout_seconds,
            description=spec.description,
            tags=spec.tags,
            cost=spec.cost,
            max_queued=spec.max_queued,
            breaker=breaker,
        )
        declare(_handler(spec, link))
    return agent


def _handler(spec: CapabilitySpec, link: AgentLink | None) -> Callable[..., Any]:
    async def act(value: Any, ctx: Context) -> Any:
        assert link is not None, "a declaration that is only checked runs nothing"
        return await link.act(value, ctx, timeout_seconds=spec.timeout_seconds)

    act.__annotations__ = {
        "value": described(spec.input_schema, _check_of(spec)),
        "ctx": Context,
        "return": described(spec.output_schema),
    }
    return act


def _check_of(spec: CapabilitySpec) -> Callable[[Any], None] | None:
    """Return the check of an input by the capability's schema; None without a schema.

    Raises:
        SetupError: when it is no JSON Schema.
    """
    if not spec.input_schema:
        return None
    from coditect.integrations.json_schema import SchemaCheck  # noqa: PLC0415 - slow to import, and rarely used

    try:
        return SchemaCheck(spec.input_schema).check
    except SetupError as error:
        error.facts |= {"capability": spec.name, "fix": "correct input_schema, or leave it out"}
        raise
