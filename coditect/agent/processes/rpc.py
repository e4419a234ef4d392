"""The agent's side of the calls of a handler that runs in a worker process: its requests, progress and events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from coditect import errors
from coditect.agent.context import Services
from coditect.agent.processes.protocol import Frame, FrameKind
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.wire.tasks import read_result, result_message


class WorkerRpc:
    """The calls of one execution; requests run in `group`, and their answers go out through `send`."""

    def __init__(self, services: Services, group: asyncio.TaskGroup, send: Callable[[Frame], None]) -> None:
        self._services = services
        self._group = group
        self._send = send
        self._requests: dict[int, asyncio.Task[None]] = {}

    def run(self, frame: Frame) -> None:
        """Carry out the call in a frame; a request runs in the background.

        Raises:
            ValueError: when the frame is of a kind that a worker does not send.
        """
        head = frame.head
        match frame.kind:
            case FrameKind.PROGRESS:
                self._services.progress(*head)
            case FrameKind.EVENT:
                kind, subject, facts = head
                self._services.emit(kind, subject=subject, **facts)
            case FrameKind.REQUEST:
                number = head["number"]
                self._requests[number] = self._group.create_task(self._request(head, frame.body), name="errand")
                self._requests[number].add_done_callback(lambda _: self._requests.pop(number, None))
            case FrameKind.ABANDON:
                if head in self._requests:
                    self._requests[head].cancel()
            case _:
                raise ValueError(f"a worker does not say {frame.kind.name}")

    def cancel(self) -> None:
        """Cancel the requests that still run, because the worker does not await their answers any more."""
        for request in self._requests.values():
            request.cancel()

    async def _request(self, head: dict[str, Any], body: bytes) -> None:
        try:
            outcome = await self._services.request(
                head["capability"],
                body,
                ordinal=head["ordinal"],
                timeout_seconds=head["timeout_seconds"],
                priority=Priority(head["priority"]),
            )
        except CoditectError as error:
            self._send(Frame(FrameKind.ANSWER, {"number": head["number"], "error": _described(error)}))
        else:
            self._send(_answer(head["number"], head["capability"], outcome))


def _answer(number: int, capability: str, outcome: Outcome) -> Frame:
    message = result_message(outcome, capability=capability)
    head = {"number": number, "headers": dict(message.headers), "correlation_id": message.correlation_id}
    return Frame(FrameKind.ANSWER, head, message.body)


def _described(error: CoditectError) -> dict[str, Any]:
    facts = {name: value if isinstance(value, int | float) else str(value) for name, value in error.facts.items()}
    return {"type": type(error).__name__, "sentence": error.sentence, "facts": facts}


def outcome_in(frame: Frame) -> Outcome:
    """Return the outcome in an ANSWER frame.

    Raises:
        CoditectError: the error with which the request ended, of the same type.
    """
    described = frame.head.get("error")
    if described is None:
        return read_result(
            Message(frame.body, headers=frame.head["headers"], correlation_id=frame.head["correlation_id"])
        )
    kind = getattr(errors, described["type"], CoditectError)
    failure: CoditectError = kind(described["sentence"], **described["facts"])
    raise failure
