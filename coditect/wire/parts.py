"""The wire format of a streamed result: parts from the agent to the requester, and credit the other way.

::

    agent     -> reply_to   coditect.part.v1    headers -task, -capability, -agent, -attempt, -execution, -part;
                                                body: the part. An empty body is no part: with -last the stream ends
                                                before this number, else the agent waits for credit to send it
    requester -> mailbox    coditect.credit.v1  {"execution": ..., "until": ...}: parts below this number may go

Each execution of a task numbers its parts from 0. Before any credit an agent sends as many parts as the
task's header ``x-coditect-stream`` says.
"""

from __future__ import annotations

from typing import Any

from coditect.errors import InvalidTask
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.task import Task
from coditect.model.value import value
from coditect.wire.addresses.target import CAPABILITY
from coditect.wire.blob_ref import CLAIM_TYPE, check_claims
from coditect.wire.headers.foreign import PREFIX
from coditect.wire.json import dumps
from coditect.wire.tasks import AGENT, ATTEMPT, CLAIM, TASK

PART_TYPE = "coditect.part.v1"
CREDIT = "coditect.credit.v1"
"""Permission to send parts of a streamed result; the content is a `Credit`."""
EXECUTION = PREFIX + "execution"
PART = PREFIX + "part"
LAST = PREFIX + "last"
_LONGEST_ID = 255


@value
class Part:
    """A part of a streamed result; without a body, a notice that its sender waits for credit, or has sent all parts."""

    execution: str
    """The random id of the execution that the part belongs to."""
    number: int
    """The place of the part in its execution, from 0."""
    agent_id: AgentId
    attempt: int
    body: bytes = b""
    """The JSON of the part; empty when the message is no part."""
    last: bool = False
    """Whether the execution has yielded all its parts, as many as `number` says."""
    claims: bool = False
    """Whether the body holds a blob reference whose large value was not fetched yet."""


@value
class Credit:
    """A requester's permission for an agent to send the parts of a streamed result with numbers below `until`."""

    execution: str
    until: int

    def message(self) -> Message:
        """Build the control message that brings the credit to the agent's mailbox."""
        return Message(body=dumps({"execution": self.execution, "until": self.until}), type=CREDIT)


def read_credit(content: Any) -> Credit:
    """Parse the content of a credit message.

    Raises:
        InvalidTask: when execution or number are missing.
    """
    execution, until = (content.get("execution"), content.get("until")) if isinstance(content, dict) else (None, None)
    if not isinstance(execution, str) or type(until) is not int:
        raise InvalidTask("A credit names an execution and a number of parts")
    return Credit(execution, until)


def part_message(part: Part, task: Task) -> Message:
    """Build the message of a part, with the correlation id of the task's request."""
    headers: dict[str, Any] = {
        TASK: task.id or "",
        CAPABILITY: task.capability,
        AGENT: part.agent_id,
        ATTEMPT: part.attempt,
        EXECUTION: part.execution,
        PART: part.number,
    }
    if part.last:
        headers[LAST] = True
    if part.claims:
        headers[CLAIM] = CLAIM_TYPE
    correlation_id = task.correlation_id or task.id
    return Message(part.body, headers, None, correlation_id, type=PART_TYPE, app_id=part.agent_id)


def read_part(message: Message) -> Part:
    """Parse the part in a message.

    Raises:
        InvalidTask: when a header is missing or is not what the module's table says.
    """
    headers = message.headers
    execution, agent_id, number, attempt = (headers.get(name) for name in (EXECUTION, AGENT, PART, ATTEMPT))
    if not isinstance(execution, str) or not 0 < len(execution) <= _LONGEST_ID or not isinstance(agent_id, str):
        raise InvalidTask("A part names its execution and its agent", header=EXECUTION)
    if type(number) is not int or type(attempt) is not int or number < 0:
        raise InvalidTask("A part has a number and an attempt", header=PART)
    claims = CLAIM in headers
    if claims:
        check_claims(message.body)
    return Part(execution, number, AgentId(agent_id), attempt, message.body, headers.get(LAST) is True, claims)
