"""The part of a handler's context that opens conversation threads, takes part in them, and asks agents and people."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

from coditect.agent.handlers.port import Services
from coditect.collaboration.threads import QUESTION, Thread
from coditect.errors import UnknownCapability
from coditect.model import arguments
from coditect.model.capability import Priority
from coditect.model.duration import Duration
from coditect.model.ids import AgentId, TaskId, child_task_id
from coditect.model.task import Task


class TaskThreads:
    """The conversation threads of one task; a handler that runs again finds its threads, and repeats no message."""

    _task: Task
    task_id: TaskId
    agent_id: AgentId
    services: Services

    async def _ask(
        self, capability: str, value: Any, model: Any, timeout: Duration, priority: Priority | str | None
    ) -> Any:
        """Request a capability and return its value; implemented by `TaskContext`."""
        raise NotImplementedError

    def thread(self, thread: str) -> Thread:
        """Return an object for the conversation thread with an id; nothing checks that such a thread exists.

        This agent takes part in it under its name, its id, or the task's capability.
        """
        name = arguments.text("thread", thread, shortest=1, longest=200)
        return Thread(self.services, name, self._thread_names, self._thread_id)

    async def open_thread(
        self,
        *participants: str,
        type: str = "discussion",  # noqa: A002 - the word of the events and of the command line
        title: str = "",
        keep: Duration = "7d",
    ) -> Thread:
        """Open a thread that is bound to the task and its workflow, for this agent and for the participants.

        A participant is the name of an agent, a capability, or the name of a person. A handler that runs again finds
        the thread that it opened before. The thread is kept for `keep` after its last message.

        Raises:
            InputError: when there are more than 50 participants, or a parameter is wrong.
            ControlPlaneRequired: when no dispatcher answers.
        """
        workflow = "" if self._task.owner is None else self._task.owner.workflow
        bound = {"type": type, "title": title, "task": self.task_id, "workflow": workflow}
        thread = self.thread(self._thread_id(f"open/{bound}/{participants}"))
        return await thread.open(participants, keep=keep, **bound)

    async def ask(self, participant: str, question: Any, *, timeout: Duration = "5m") -> Any:
        """Ask a capability, an agent or a person, and return the answer; the task holds no slot while it waits.

        A capability that an agent offers is requested with the question as its input. Anybody else is asked in a
        thread that is bound to the task, and answers there: `thread.answer(message, value)`, `coditect thread say`.

        Raises:
            TaskFailed: when the capability ended without a value.
            ResultTimeout: when there was no answer within `timeout`.
            ControlPlaneRequired: when an agent or a person is asked, and no dispatcher answers.
        """
        try:
            return await self._ask(participant, question, Any, timeout, None)
        except UnknownCapability:
            thread = await self.open_thread(participant, type=QUESTION)
        answer = await thread.ask(question, to=participant, timeout=timeout)
        await thread.close("answered")
        return answer

    @property
    def _thread_names(self) -> list[str]:
        return [self.agent_id.rpartition("-")[0], self.agent_id, self._task.capability]

    @cached_property
    def _thread_ids(self) -> Counter[str]:
        return Counter()

    def _thread_id(self, purpose: str) -> str:
        """Return an id for a thread, message or wait, the same when the task runs again and asks in the same order."""
        self._thread_ids[purpose] += 1
        return child_task_id(self.task_id, "thread", purpose.encode(), self._thread_ids[purpose])
