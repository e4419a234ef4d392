"""What the runtime does for one running handler."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from coditect.agent.events import Events
from coditect.agent.execute import SentBack
from coditect.agent.feed import Held
from coditect.agent.intake import Intake
from coditect.agent.reports import Reports
from coditect.blob import fetched
from coditect.clock import Clock
from coditect.errors import InvalidTask, ResultTimeout, UnknownCapability, Unroutable
from coditect.model.capability import Priority, check_capability_name
from coditect.model.ids import TaskId, child_task_id
from coditect.model.result import Outcome
from coditect.model.task import MAX_DEPTH, Limits, Task
from coditect.model.wire import MAX_BODY_BYTES
from coditect.requests import Requests


@dataclass(frozen=True, slots=True)
class TaskServices:
    """See `context.Services`."""

    held: Held
    task_id: TaskId
    requests: Requests
    events: Events
    intake: Intake
    clock: Clock
    max_suspended: int
    loop: asyncio.AbstractEventLoop
    reports: Reports

    async def request(
        self, capability: str, body: bytes, *, ordinal: int, timeout_seconds: float, priority: Priority
    ) -> Outcome:
        """See `Context.request`. At the bound of suspended tasks this one goes back to its queue instead."""
        check_capability_name(capability)
        if self.held.task.depth >= MAX_DEPTH:
            raise InvalidTask(
                "Requests are nested too deep", depth=MAX_DEPTH, fix="find the agents that ask in a circle"
            )
        travels = body if len(body) <= MAX_BODY_BYTES else (await self.requests.blobs.put(body)).document
        if not self.intake.may_suspend(self.held, self.max_suspended):
            raise SentBack
        child = self._child(capability, travels, timeout_seconds, ordinal=ordinal, priority=priority)
        if travels is not body:
            child = replace(child, claims=travels)
        reply = self.requests.expect(child.correlation_id or "")
        self.intake.suspend(self.held)
        try:
            outcome = await self._exchange(child, reply, timeout_seconds)
        except asyncio.CancelledError:
            self.intake.abandon(self.held)
            raise
        except BaseException:
            await self.intake.resume(self.held)
            raise
        await self.intake.resume(self.held)
        return outcome

    async def _exchange(self, child: Task, reply: asyncio.Future[Outcome], timeout_seconds: float) -> Outcome:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.requests.send(child, timeout_seconds=timeout_seconds)
                outcome = await asyncio.shield(reply)
                return await fetched(self.requests.blobs, outcome) if outcome.claims else outcome
        except TimeoutError as error:
            raise ResultTimeout("The requested task gave no result in time", task_id=child.id) from error
        except Unroutable as error:
            raise UnknownCapability("Nobody offers this capability", capability=child.capability) from error
        finally:
            self.requests.forget(child.correlation_id or "")

    def _child(
        self,
        capability: str,
        travels: bytes,
        timeout_seconds: float,
        *,
        ordinal: int,
        priority: Priority,
    ) -> Task:
        now, parent = self.clock.now_ms(), self.held.task
        deadline = now + int(timeout_seconds * 1000)
        if parent.limits.deadline_ms is not None:
            deadline = min(deadline, parent.limits.deadline_ms)
        child_id = child_task_id(self.task_id, capability, travels, ordinal)
        return Task(
            capability,
            priority,
            travels,
            id=child_id,
            correlation_id=self.requests.new_token(),
            reply_to=self.requests.reply_to,
            limits=Limits(deadline_ms=deadline),
            depth=parent.depth + 1,
            published_at_ms=now,
            traceparent=parent.traceparent,
            tracestate=parent.tracestate,
        )

    def progress(self, share: float, note: str) -> None:
        """An event about this task; of an owned one its owner is told."""
        owner = self.held.task.owner
        if owner is not None:
            self.reports.progress(owner, share, note)
            return
        self.events.emit("task.progress", subject=self.task_id, share=share, note=note)

    def report(self, share: float, note: str) -> None:
        """The same from a handler's thread."""
        self.loop.call_soon_threadsafe(self.progress, share, note)

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """An event of the handler's own."""
        self.events.emit(type_, subject=subject, **data)
