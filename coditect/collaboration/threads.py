"""Threads for agents, clients and people: conversations kept, in order, until some time after the last message.

`thread = await ctx.open_thread("writer", "ada")`, `await thread.say("Is this right?")`, and in another process
`async for message in thread.listen()`. A message that was said while a participant was away waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, Unpack

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from coditect.codec import encode_any
from coditect.errors import CoditectError, NotFound, ResultTimeout
from coditect.messaging.control_plane import ControlPlane
from coditect.messaging.rpc import Requests
from coditect.model import arguments
from coditect.model.duration import Duration, seconds
from coditect.model.option import Option, read_options
from coditect.model.result import Outcome
from coditect.model.thread import ThreadMessage, ThreadRow
from coditect.wire.control import Verb
from coditect.wire.json import loads

THREAD_CHECK_SECONDS = 5.0
"""After how long a listener looks for messages by itself, in case the news of one was lost."""
QUESTION = "question"
ANSWER = "answer"
ANSWERED_MESSAGE = "answers"
"""The entry in an answer's metadata that has the id of the question."""
LONGEST_TYPE_BYTES = 200
LONGEST_THREAD_TEXT_BYTES = 1_000

NewId = Callable[[str], str]
"""A function that makes the id of a thread, message or ticket from what it is for."""


class ThreadOptions(TypedDict, total=False):
    """The options of a thread that is opened: what it is about, and for how long it is kept."""

    type: Annotated[str, Option("What kind of thread it is.", "discussion", high=LONGEST_TYPE_BYTES)]
    title: Annotated[str, Option("What it is about.", "", high=LONGEST_THREAD_TEXT_BYTES)]
    task: Annotated[str, Option("The task that it is bound to.", "", high=LONGEST_THREAD_TEXT_BYTES)]
    workflow: Annotated[str, Option("The workflow that it is bound to.", "", high=LONGEST_THREAD_TEXT_BYTES)]
    ticket: Annotated[str, Option("The ticket of another system that it is about.", "", high=LONGEST_THREAD_TEXT_BYTES)]
    metadata: Annotated[Mapping[str, Any], Option("More about it, for those who read the thread.")]
    retention: Annotated[Duration, Option("How long it is kept after its last message.", "7d", low="1m", high="365d")]


class ThreadPort(Protocol):
    """The port through which a `Thread` asks the control plane; all arguments and results are JSON values."""

    async def ask_thread(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a discussion thread's request with the sender's name, and reply queue for a wait; return the answer."""

    async def hear(self, ticket: str, after_seconds: float) -> None:
        """Wait at most `after_seconds` for the notice that a discussion thread has new messages, or is closed.

        `ticket` is the id of the wait, which an earlier request began. The call returns at once if the notice has come.
        """


class Thread:
    """A discussion thread as one participant uses it: to read it, to wait for messages, and to say something.

    Raises:
        ControlPlaneRequired: by every method, when no dispatcher answers.
        NotFound: by every method, when the thread is unknown, or not kept any more.
    """

    def __init__(self, port: ThreadPort, thread: str, names: Iterable[str], new_id: NewId) -> None:
        self._port = port
        self._names = list(names)
        self._new_id = new_id
        self.id = thread
        """The id of the thread."""

    async def open(self, participants: Iterable[str], **options: Unpack[ThreadOptions]) -> Thread:
        """Make the thread in the control plane unless it exists, for this participant and the given others; return it.

        Raises:
            InputError: when there are more than 50 participants, or a parameter is wrong.
        """
        everyone = (*participants, self._names[0])
        named = [arguments.text("participant", name, shortest=1, longest=200) for name in everyone]
        chosen = read_options("A thread", ThreadOptions, options)
        chosen["keep_ms"] = round(1000 * seconds(chosen.pop("retention")))
        chosen["metadata"] = dict(chosen["metadata"] or {})
        await self._ask(Verb.THREAD_OPEN, {"participants": list(dict.fromkeys(named))} | chosen)
        return self

    async def say(
        self,
        value: Any,
        *,
        type: str = "text",  # noqa: A002 - the word of the events and of the command line
        to: str | Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a message to the thread, for all participants or for some, and return its number.

        The message is kept when the call returns. A handler that runs again says an equal message once.

        Raises:
            InputError: when the sender takes no part, or the thread is closed or full.
            TooLarge: when the message is over 64,000 bytes.
        """
        return (await self._say(value, type, to, metadata))[0]

    async def _say(
        self, value: Any, type_: str, to: str | Iterable[str], metadata: Mapping[str, Any] | None
    ) -> tuple[int, str]:
        kind = arguments.text("type", type_, shortest=1, longest=LONGEST_TYPE_BYTES)
        named = sorted(arguments.texts("to", to))
        encoded = encode_any(value)
        message = self._new_id(f"say/{self.id}/{kind}/{encoded.decode()}/{named}")
        body = {"message": message, "type": kind, "value": loads(encoded), "to": named}
        answer = await self._ask(Verb.THREAD_SAY, body | {"metadata": dict(metadata or {})})
        return int(answer["number"]), message

    async def history(
        self, *, after: int = 0, everything: bool = False, page: int = 100
    ) -> AsyncGenerator[ThreadMessage, None]:
        """Yield the messages for this participant in their order, beginning after message number `after`.

        With `everything`, also those that are for others only. The control plane is asked for a `page` at a time.
        """
        query: dict[str, Any] = {"limit": arguments.whole("page", page, 1, 500)} | ({"names": []} if everything else {})
        place: int | None = arguments.whole("after", after, 0, 2**53)
        while place is not None:
            answer = await self._ask(Verb.THREAD_MESSAGES, {"after": place} | query)
            for row in answer["messages"]:
                yield ThreadMessage.read(row)
            place = answer["next"]

    async def message(self, number: int) -> ThreadMessage:
        """Return a message by its number, if it is for this participant; else raise an error.

        Raises:
            NotFound: when the thread has no such message.
        """
        after = arguments.whole("number", number, 1, 2**53) - 1
        page = await self._ask(Verb.THREAD_MESSAGES, {"after": after, "limit": 1})
        for row in page["messages"]:
            return ThreadMessage.read(row)
        raise NotFound("The thread has no such message", thread=self.id, number=number, fix="coditect thread get")

    async def listen(self, *, after: int | None = None) -> AsyncGenerator[ThreadMessage, None]:
        """Yield the others' unread messages, and new ones as they come, until the thread is closed; note them as read.

        Begins behind number `after`; by default behind the last message that this participant has read, so nothing
        that was said while it was away is missed.
        """
        seen = await self._seen() if after is None else arguments.whole("after", after, 0, 2**53)
        ticket = self._new_id(f"listen/{self.id}")
        try:
            while True:
                receipt = await self._ask(Verb.THREAD_READ, {"number": seen, "ticket": ticket, "reply_to": True})
                async with aclosing(self.history(after=seen)) as messages:
                    async for message in messages:
                        seen = message.number  # before: who ends the loop with a message has had it
                        if message.sender not in self._names:
                            yield message
                seen = max(seen, receipt["last"])
                if receipt["closed"]:
                    return
                await self._port.hear(ticket, THREAD_CHECK_SECONDS)
        finally:
            await self._leave(ticket, seen)

    async def ask(self, question: Any, *, to: str | Iterable[str] = (), timeout: Duration = "5m") -> Any:
        """Ask a question in the thread, wait for the first answer to it, and return the answer's value.

        Raises:
            ResultTimeout: when there was no answer in time; the question stays in the thread.
        """
        limit = seconds(arguments.span("timeout", timeout))
        number, message = await self._say(question, QUESTION, to, None)
        try:
            async with asyncio.timeout(limit), aclosing(self.listen(after=number)) as messages:
                async for answer in messages:
                    if answer.metadata.get(ANSWERED_MESSAGE) == message:
                        return answer.value
        except TimeoutError as error:
            raise ResultTimeout("No participant answered in time", thread=self.id, question=number) from error
        raise ResultTimeout("The thread was closed before an answer", thread=self.id, question=number)

    async def answer(self, question: ThreadMessage, value: Any) -> int:
        """Answer a question, to its sender, and return the number of the answer."""
        return await self.say(value, type=ANSWER, to=question.sender, metadata={ANSWERED_MESSAGE: question.message})

    async def show(self) -> ThreadRow:
        """Return the thread's row: its participants, and up to which message each of them has read."""
        return ThreadRow.of(await self._ask(Verb.THREAD_SHOW, {}))

    async def read(self, number: int) -> None:
        """Note that this participant has read the messages up to a number."""
        await self._ask(Verb.THREAD_READ, {"number": arguments.whole("number", number, 1, 2**53)})

    async def close(self, reason: str = "") -> None:
        """Close the thread, so that it takes no more messages and no listener waits for any."""
        await self._ask(Verb.THREAD_CLOSE, {"reason": arguments.text("reason", reason, longest=1_000)})

    async def _seen(self) -> int:
        receipts = (await self.show()).read
        return max((receipts.get(name, 0) for name in self._names), default=0)

    async def _leave(self, ticket: str, seen: int) -> None:
        try:
            await self._ask(Verb.THREAD_READ, {"number": seen, "ticket": ticket})
        except CoditectError:  # the row of a process that is gone costs one push for each message
            return

    async def _ask(self, verb: Verb, more: dict[str, Any]) -> dict[str, Any]:
        body = {"thread": self.id, "names": self._names} | more
        if not body.get("number", 1):
            del body["number"]
        return await self._port.ask_thread(verb, body)


@dataclass(frozen=True, slots=True)
class ThreadRequests:
    """The requests of one process about discussion threads, and its waits for messages, each under an id (ticket).

    The control plane announces new messages, or the end of the thread, to the reply queue, with the ticket as
    correlation id.
    """

    control: ControlPlane
    requests: Requests
    _news: dict[str, asyncio.Future[Outcome]] = field(default_factory=dict)
    """The news that the process waits for, by ticket."""

    async def ask_thread(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request, as `ThreadPort.ask_thread` says; it may begin or end a wait for messages."""
        if body.get("reply_to"):
            body = body | {"reply_to": self.requests.reply_to}
            ticket = str(body["ticket"])
            self._news[ticket] = self.requests.expect(ticket)  # the news may come before the answer
        elif "ticket" in body:
            self._news.pop(str(body["ticket"]), None)
            self.requests.forget(str(body["ticket"]))
        return await self.control.ask(Verb(verb), {"writer": self.control.name} | body)

    async def hear(self, ticket: str, after_seconds: float) -> None:
        """Wait for the notice of an earlier wait's id, as `ThreadPort.hear` says."""
        await asyncio.wait({self._news[ticket]}, timeout=after_seconds)
