"""One message to a remote A2A agent, and its task, which is followed to the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from a2a.client import Client, ClientCallContext
from a2a.types import a2a_pb2 as a2a
from a2a.types.a2a_pb2 import TaskState as A2aState
from a2a.utils.errors import TaskNotFoundError

from coditect.aio.backoff import Backoff
from coditect.errors import CoditectError
from coditect.integrations.a2a.parts import answer_of, plain, text_of
from coditect.integrations.a2a.remote.failures import RemoteAsks, RemoteFailed, RemoteRejected, judged
from coditect.integrations.http.failures import AgentLost, AgentRefused, AnswerBroken

log = logging.getLogger(__name__)

ASK_SECONDS = 30.0
"""How long a question about a task may take."""
SILENCE_SECONDS = 60.0
"""How long a stream may be silent before the task is asked for."""
CONNECT_SECONDS = 30.0
"""How long a message waits for an agent that takes no connection."""
CANCEL_SECONDS = 5.0
PAUSES = Backoff(first=0.1, longest=5.0)
"""The pauses between questions about a task that runs."""
MOST_FAILURES = 5
"""How many questions in a row may find the agent away before the attempt fails."""
LONGEST_TEXT = 2_000
MOST_ITEMS = 10_000
"""How many updates a stream may have."""
Progress = Callable[[float, str], Awaitable[None]]
"""A function that is called with the share of the work that is done, 0 to 1, and a note."""

_ENDED = frozenset(
    {
        A2aState.TASK_STATE_COMPLETED,
        A2aState.TASK_STATE_FAILED,
        A2aState.TASK_STATE_CANCELED,
        A2aState.TASK_STATE_REJECTED,
    }
)
_ASKS = frozenset({A2aState.TASK_STATE_INPUT_REQUIRED, A2aState.TASK_STATE_AUTH_REQUIRED})


class RemoteCall:
    """A call of a remote A2A agent: one message that is sent, and the task that it starts, followed to its end."""

    def __init__(self, client: Client, url: str, progress: Progress, *, streaming: bool) -> None:
        """Take an open A2A client; `progress` is called at each status update of the task while it works."""
        self._client = client
        self._url = url
        self._progress = progress
        self._sending = ClientCallContext(timeout=SILENCE_SECONDS if streaming else None)
        self._task_id = ""

    async def run(self, request: a2a.SendMessageRequest) -> Any:
        """Send the message, and return the value of the answer: of a message at once, of a task when it has ended.

        Raises:
            CoditectError: the errors of `RemoteAgent.call`.
        """
        answer: a2a.Task | a2a.Message | None = None
        try:
            answer = await self._sent(request)
        except AgentLost:
            if not self._task_id:
                raise
            log.info("A stream of a remote agent broke; its task is asked for", extra={"task": self._task_id})
        if isinstance(answer, a2a.Message):
            return answer_of(answer.parts)
        return _end(answer if answer is not None and _settled(answer) else await self._ended(), self._url)

    async def cancel(self) -> None:
        """Ask the remote agent to cancel the task if its id is known, for up to five seconds; only log a failure."""
        if not self._task_id:
            return
        try:
            with judged(self._url):
                async with asyncio.timeout(CANCEL_SECONDS):
                    await self._client.cancel_task(a2a.CancelTaskRequest(id=self._task_id))
        except CoditectError as error:
            log.info("A remote task was not canceled", extra={"task": self._task_id, "reason": str(error)[:300]})

    async def _sent(self, request: a2a.SendMessageRequest) -> a2a.Task | a2a.Message | None:
        """Send the message, again for up to 30 s while the agent takes no connection, such as during a restart."""
        now, pauses = asyncio.get_running_loop().time, PAUSES.pauses()
        until = now() + CONNECT_SECONDS
        while True:
            try:
                with judged(self._url):
                    return await self._send(request)
            except AgentRefused:
                pause = next(pauses)
                if self._task_id or now() + pause > until:
                    raise
            await asyncio.sleep(pause)

    async def _send(self, request: a2a.SendMessageRequest) -> a2a.Task | a2a.Message | None:
        """Send the message and read the answers; return the last answer if it is a whole task or message, else None."""
        whole: a2a.Task | a2a.Message | None = None
        items = 0
        async for answer in self._client.send_message(request, context=self._sending):
            items += 1
            if items > MOST_ITEMS:
                raise AnswerBroken("The remote agent's stream does not end", url=self._url, updates=MOST_ITEMS)
            if answer.HasField("message"):
                return answer.message
            if answer.HasField("task"):
                whole = answer.task
                self._task_id = self._task_id or answer.task.id
                continue
            whole = None  # what a stream tells in parts is asked for as a whole
            update = answer.status_update
            self._task_id = self._task_id or update.task_id or answer.artifact_update.task_id
            if update.status.state == A2aState.TASK_STATE_WORKING:
                await self._tell(update)
        if not self._task_id:
            raise AnswerBroken("The remote agent's answer has neither a task nor a message", url=self._url)
        return whole

    async def _tell(self, update: a2a.TaskStatusUpdateEvent) -> None:
        share = plain(update.metadata).get("share")
        known = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share <= 1
        await self._progress(float(share) if known else 0.0, text_of(update.status.message.parts)[:LONGEST_TEXT])

    async def _ended(self) -> a2a.Task:
        """Poll the task until it has ended or waits for its caller; up to four polls in a row may not reach the agent.

        Raises:
            AgentLost: when the agent stays away, or does not know the task any more.
        """
        asked, failures = 0, 0
        while True:
            try:
                with judged(self._url):
                    async with asyncio.timeout(ASK_SECONDS):
                        task = await self._client.get_task(a2a.GetTaskRequest(id=self._task_id))
                failures = 0
                if _settled(task):
                    return task
            except (AgentLost, AgentRefused) as error:
                failures += 1
                if failures >= MOST_FAILURES:
                    raise AgentLost("The remote agent stays away", url=self._url, task=self._task_id) from error
            except RemoteFailed as error:
                if isinstance(error.__cause__, TaskNotFoundError):
                    raise AgentLost("The remote agent forgot the task", url=self._url, task=self._task_id) from error
                raise
            asked += 1
            await asyncio.sleep(PAUSES.pause(asked))


def _settled(task: a2a.Task) -> bool:
    return task.status.state in _ENDED or task.status.state in _ASKS


def _end(task: a2a.Task, url: str) -> Any:
    """Return the value of a completed task; raise for one that ended otherwise, or waits for its caller.

    Raises:
        RemoteFailed: when the task failed, or was canceled there.
        RemoteRejected: when the task was rejected.
        RemoteAsks: when the task waits for something.
    """
    state = task.status.state
    if state == A2aState.TASK_STATE_COMPLETED:
        parts = [part for artifact in task.artifacts for part in artifact.parts]
        return answer_of(parts or task.status.message.parts)
    told = text_of(task.status.message.parts)[:LONGEST_TEXT] or "it does not say why"
    facts = {"url": url, "task": task.id[:200], "reason": told}
    if state == A2aState.TASK_STATE_REJECTED:
        raise RemoteRejected("The remote agent rejected the task", **facts)
    if state == A2aState.TASK_STATE_INPUT_REQUIRED:
        fix = "give all of it with the task: a capability takes one input"
        raise RemoteAsks("The remote agent wants more input", **facts, fix=fix)
    if state == A2aState.TASK_STATE_AUTH_REQUIRED:
        raise RemoteAsks("The remote agent wants an authorization", **facts, fix="grant it at the remote agent")
    ended = "failed" if state == A2aState.TASK_STATE_FAILED else "was canceled there"
    raise RemoteFailed(f"The task {ended}", **facts)
