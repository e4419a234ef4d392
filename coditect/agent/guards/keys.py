"""The limits on how many tasks with an equal key run at the same time: each one first takes the lock of its key.

The key comes from the task's input. The control plane grants the locks in order of arrival. A task that waits holds no
slot, as one that awaits another; of those there are at most `max_suspended`, and a task above the bound goes back
behind others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

from coditect.agent.declaration import Capability
from coditect.agent.execution.execution import Execution
from coditect.agent.execution.handler import HandedBack, HandlerEnd, cut_short, unfit
from coditect.aio.clock import Clock
from coditect.collaboration.locks import Lock, LockPort, Mode
from coditect.errors import CoditectError, InvalidTask, LockLost, LockTaken
from coditect.model.limits.concurrency import KEY_LOCKS
from coditect.wire.json import loads

log = logging.getLogger(__name__)

TTL_SECONDS = 60.0
"""The time after which the key of a holder that stands still is free; the key of an evicted agent is free at once."""
LONGEST_WAIT_SECONDS = 600.0
"""How long a task waits for its key in one agent before it goes back to its queue, behind others."""

LONGEST_TIMED_SECONDS = 30.0
"""The longest wait of a workflow task with its own timeout: its owner counts the wait, and adds 60 s to the timeout."""


class KeyPort(LockPort, Protocol):
    """The port through which a task takes the lock of its concurrency key, and waits for the lock without a slot."""

    def may_suspend(self) -> bool:
        """Tell whether the task may wait without a slot; False when too many tasks of its agent wait in this way."""


class AgentKeys:
    """The locks of concurrency keys that the tasks of one agent process hold and wait for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting = Counter[str]()
        self._entering: dict[asyncio.Task[Any], tuple[str | None, str]] = {}
        """The asyncio tasks that wait for a key, with the id of the task and its key."""
        self._leaving = False

    def hand_back(self) -> None:
        """Start a drain: give back the tasks that wait for the lock of a key, and let no task take a lock any more."""
        self._leaving = True
        for work in self._entering:
            work.cancel()

    def awaited(self, task_id: str) -> str | None:
        """Return the name of the concurrency lock for which a task waits; None when it waits for none."""
        return next((key for task, key in self._entering.values() if task == task_id), None)

    async def held(
        self,
        capability: Capability,
        execution: Execution,
        port: KeyPort,
        run: Callable[[], Awaitable[HandlerEnd]],
    ) -> HandlerEnd:
        """Run an attempt while the lock of its task's concurrency key is held; reject a task whose input gives no key.

        Raises:
            HandedBack: when the wait was too long, the key was lost, no dispatcher answers, or the agent has no slot
                while others may have one; no attempt counts.
            SentBack: when too many tasks of the agent wait already.
        """
        limit = capability.concurrency
        assert limit is not None, "others have no key"
        try:
            resource = f"{KEY_LOCKS}{capability.name}/{limit.key(loads(execution.task.body))}"
        except InvalidTask as error:
            return unfit(error)
        if self._leaving or (self._waiting[resource] and not port.may_suspend()):
            raise HandedBack  # without a question: the agent drains, or the key is known to be taken
        lock = Lock(
            port,
            (resource,),
            mode=Mode.EXCLUSIVE if limit.most == 1 else f"at_most:{limit.most}",
            wait=True,
            timeout_seconds=self._wait_seconds(execution),
            ttl_seconds=TTL_SECONDS,
        )
        try:
            async with AsyncExitStack() as stack:
                return await self._entered(lock, stack, execution) or await run()
        except LockLost as lost:
            log.warning("A task lost its key and begins again", extra=self._facts(execution, lost))
            raise HandedBack from lost

    async def _entered(self, lock: Lock, stack: AsyncExitStack, execution: Execution) -> HandlerEnd | None:
        """Wait for a lock, held until `stack` closes; return None, or how the attempt ended if it was canceled first.

        Raises:
            HandedBack: when the agent drains, or the lock cannot be taken now.
            LockLost: when the lock was lost meanwhile.
        """
        (resource,), work = lock.resources, asyncio.current_task()
        assert work is not None
        self._waiting[resource] += 1
        self._entering[work] = execution.task.id, resource
        execution.load()
        try:
            await stack.enter_async_context(lock)
        except asyncio.CancelledError as error:
            if self._leaving and not execution.asked_to_end:
                work.uncancel()
                raise HandedBack from error
            return cut_short(execution, error, 0.0, lambda: True)
        except LockLost:
            raise
        except CoditectError as error:
            if not isinstance(error, LockTaken):
                log.warning("The key of a task cannot be taken yet", extra=self._facts(execution, error))
            raise HandedBack from error
        finally:
            execution.leave()
            del self._entering[work]
            self._waiting[resource] -= 1
            if not self._waiting[resource]:
                del self._waiting[resource]
        return None

    def _wait_seconds(self, execution: Execution) -> float:
        task = execution.task
        timed = task.owner is not None and task.limits.timeout_ms is not None
        most, deadline_ms = LONGEST_TIMED_SECONDS if timed else LONGEST_WAIT_SECONDS, task.limits.deadline_ms
        if deadline_ms is None:
            return most
        return min(most, max(0.0, (deadline_ms - self._clock.now_ms()) / 1000))

    def _facts(self, execution: Execution, error: CoditectError) -> dict[str, str | None]:
        return {"task_id": execution.task.id, "capability": execution.task.capability, "reason": str(error)}
