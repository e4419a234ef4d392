"""The event that the bridge posts to an HTTP agent, and the answer that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coditect.integrations.http.failures import AnswerBroken
from coditect.model.capability import Priority

EVENT_TYPE = "agent.request"
PriorityWord = Literal["low", "medium", "high", "critical"]
WORDS: Mapping[Priority, PriorityWord] = MappingProxyType(
    {Priority.P0: "critical", Priority.P1: "medium", Priority.P2: "low"}
)


class AgentRequestEvent(BaseModel):
    """An attempt at a task, as it is posted to `/agent-request` of an HTTP agent."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    event_type: str = EVENT_TYPE
    """The kind of the event, `agent.request`."""
    event_id: str
    """The id of this attempt; the answer repeats it as `request_id`."""
    created_at: datetime
    """When the event was posted."""
    source_agent: str
    """The process that waits for the result, or `workflow:<id>`; empty when none does."""
    target_agent: str
    """The id of the agent that is asked; `*` asks any."""
    action: str
    """The name of the capability that is asked for."""
    parameters: Any
    """The task's input."""
    callback_url: str
    """Where a later answer is posted; secret, and valid for this attempt alone."""
    priority: PriorityWord
    """How urgent it is: critical is P0, high and medium are P1, low is P2."""
    timeout_seconds: float
    """How long the attempt may last, from now on."""
    correlation_id: str
    """The id of the task, the same at all attempts: the key of effects that must not happen twice."""


class AnswerStatus(StrEnum):
    """The status of an HTTP agent's answer."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"


class AgentResponseEvent(BaseModel):
    """An HTTP agent's answer to an `AgentRequestEvent`, at once or by its callback."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    request_id: str = Field(max_length=200)
    """The `event_id` of the request."""
    status: AnswerStatus
    """How the attempt ended."""
    result: Any = None
    """The value, with the status `success`."""
    error: Any = None
    """What went wrong, with the status `error`: a text, or JSON."""
    duration_ms: float | None = Field(default=None, ge=0)
    """How long the work took, in milliseconds."""


FIX = 'answer {"request_id": <event_id>, "status": "success", "result": ...}'


def read_answer(body: bytes, event_id: str) -> AgentResponseEvent:
    """Parse the body of an HTTP agent's answer, and check that it answers the request with this id.

    Raises:
        AnswerBroken: when the body is no answer, or the answer to another request.
    """
    try:
        answer = AgentResponseEvent.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AnswerBroken("The answer is no AgentResponseEvent", at=where, reason=first["msg"], fix=FIX) from error
    return check_answer(answer, event_id)


def check_answer(answer: AgentResponseEvent, event_id: str) -> AgentResponseEvent:
    """Check that an answer belongs to the request with this id, and return it.

    Raises:
        AnswerBroken: when it is the answer to another request.
    """
    if answer.request_id != event_id:
        raise AnswerBroken("The answer is that of another request", request_id=answer.request_id[:100], fix=FIX)
    return answer
