"""The requests of one process about discussion threads, and its waits for new messages or a thread's end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from coditect.collaboration.asks import Asks
from coditect.messaging.rpc import Requests
from coditect.model.result import Outcome
from coditect.wire.control import Verb


@dataclass(frozen=True, slots=True)
class ThreadRequests:
    """The requests of one process about discussion threads, and its waits for messages, each under an id (ticket).

    The control plane announces new messages, or the end of the thread, to the reply queue, with the ticket as
    correlation id.
    """

    control: Asks
    requests: Requests
    _news: dict[str, asyncio.Future[Outcome]] = field(default_factory=dict)
    """The news that the process waits for, by ticket."""

    async def ask_thread(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request about discussion threads, which may begin or end a wait for messages; return the answer."""
        if body.get("reply_to"):
            body = body | {"reply_to": self.requests.reply_to}
            ticket = str(body["ticket"])
            self._news[ticket] = self.requests.expect(ticket)  # the news may come before the answer
        elif "ticket" in body:
            self._news.pop(str(body["ticket"]), None)
            self.requests.forget(str(body["ticket"]))
        return await self.control.ask(Verb(verb), {"writer": self.control.name} | body)

    async def hear(self, ticket: str, after_seconds: float) -> None:
        """Wait at most `after_seconds` for the notice that a discussion thread has new messages, or is closed.

        `ticket` is the id of the wait, which an earlier request began.
        """
        await asyncio.wait({self._news[ticket]}, timeout=after_seconds)
