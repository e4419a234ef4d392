"""The part of a client that opens discussion threads, takes part in them, and lists them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cached_property

from coditect.client.control_plane import ControlPlane, pages
from coditect.collaboration.thread_requests import ThreadRequests
from coditect.collaboration.threads import Thread, ThreadRow
from coditect.messaging.rpc import Requests
from coditect.model import arguments
from coditect.model.duration import Duration
from coditect.wire.control import Verb

LONGEST_NAME_BYTES = 200


class Threads:
    """The discussion threads that the control plane keeps."""

    def __init__(self, control: ControlPlane, requests: Requests) -> None:
        self._control = control
        self._port = ThreadRequests(control, requests)
        self._name = requests.name

    async def open(
        self,
        *participants: str,
        by: str | None = None,
        type: str = "discussion",  # noqa: A002 - the word of the events and of the command line
        title: str = "",
        task: str = "",
        workflow: str = "",
        keep: Duration = "7d",
    ) -> Thread:
        """Open a thread for these participants and for `by`, which is this client unless a person is named.

        A participant is the name of an agent, a capability, or the name of a person. The thread is kept for `keep`
        after its last message.

        Raises:
            InputError: when there are more than 50 participants, or a parameter is wrong.
        """
        thread = self.get(self._control.new_id(), by=by)
        return await thread.open(participants, keep=keep, type=type, title=title, task=task, workflow=workflow)

    def get(self, thread: str, *, by: str | None = None) -> Thread:
        """Return a thread by its id, to be used in the name of `by` (a person or agent); sends no request yet."""
        name = arguments.text("thread", thread, shortest=1, longest=LONGEST_NAME_BYTES)
        return Thread(self._port, name, [by or self._name], self._new_id)

    async def list(
        self,
        *,
        participant: str | None = None,
        task: str | None = None,
        workflow: str | None = None,
        open_only: bool = False,
        most: int | None = None,
    ) -> AsyncIterator[ThreadRow]:
        """Yield the threads, the earliest first: all, or those of a participant, a task or a workflow."""
        wanted = {"participant": participant, "task": task, "workflow": workflow, "open": open_only}
        async for row in pages(self._control, Verb.THREAD_LIST, "threads", wanted, most=most):
            yield ThreadRow.of(row)

    def _new_id(self, _: str) -> str:
        return self._control.new_id()


class ClientThreads:
    """The mixin that gives `Client` its attribute `threads`, for discussion threads."""

    _control: ControlPlane
    _requests: Requests

    @cached_property
    def threads(self) -> Threads:
        """The discussion threads that the control plane keeps: `client.threads.open(...)`, `get(id)`, `list()`."""
        return Threads(self._control, self._requests)
