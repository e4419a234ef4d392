"""Shared state for agents and clients: versioned values by key, shared in a workflow or under a name.

`await ctx.shared.put("plan", plan)` in one node, `await ctx.shared.get("plan", Plan)` in another. Every write is a new
version of its key, with its writer; a write that names the version it has read replaces that one or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

from coditect.aio.supervisor import Backoff
from coditect.blobs import whole_value
from coditect.codec import codec, encode_any
from coditect.errors import TooLarge, VersionConflict
from coditect.messaging.control_plane import ControlPlane
from coditect.model import arguments
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads

T = TypeVar("T")

MAX_STATE_NAME_BYTES = 500
MOST_INLINE_BYTES = 1_000_000
"""The size in bytes from which a value is put into the blob store, and the control plane keeps a reference to it."""
WATCH_PAUSES = Backoff(0.05, 1.0)
"""The pauses between looks of `SharedState.watch`: a change is seen after 1 s at most."""
STATE_PAGE = 500
"""The number of keys that one request of `SharedState.entries` asks for."""
MAX_UPDATE_TRIES = 100
"""The number of times that `SharedState.update` tries again when others write the same key."""


@dataclass(frozen=True, slots=True)
class StateEntry:
    """A version of the value of a key in shared state, with its writer and time."""

    key: str
    version: int
    """The number of the version, from 1; 0 for a key that has no value."""
    value: Any
    """The value as JSON; None in a listing, and for a key that has no value."""
    writer: str
    """The agent or client that wrote the version."""
    task: str
    """The task whose handler wrote it; empty for a client's."""
    at_ms: int
    """When the version was written, in milliseconds since the epoch."""
    deleted: bool = False
    """Whether the version is the deletion of the key, or the key was never written."""


class StatePort(Protocol):
    """The port through which a `SharedState` asks the control plane; all arguments and results are JSON values."""

    async def ask_state(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request about shared state, with its writer, and return the answer."""


@dataclass(frozen=True, slots=True)
class StateRequests:
    """The requests of one process about shared state, with large values put into the blob store."""

    control: ControlPlane

    async def ask_state(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request about shared state and return the answer; large values go through the blob store."""
        if "value" in body and len(encoded := dumps(body["value"])) > MOST_INLINE_BYTES:
            try:
                body = body | {"value": loads((await self.control.blobs.put(encoded)).document)}
            except TooLarge as error:  # of a task's body the limit is another
                error.facts["limit"] = MOST_INLINE_BYTES
                raise
        answer = await self.control.ask(Verb(verb), {"writer": self.control.name} | body)
        if answer.get("value") is not None:
            answer["value"] = await whole_value(self.control.blobs, answer["value"])
        return answer


class SharedState:
    """The versioned values by key that are shared in one workflow, or by all agents and clients under one name.

    Raises:
        ControlPlaneRequired: by every method, when no dispatcher answers.
        InputError: by every write, when its workflow has ended, its attempt is not the present one any more, or the
            name is reserved: Coditect itself keeps the spaces `coditect.*`, `langgraph` and `langgraph:*`.
    """

    def __init__(self, port: StatePort, name: str, *, keeper: str = "") -> None:
        self._port = port
        self._keeper = keeper
        self.name = name
        """The name of the space as requests have it: `workflow:` and an id, or `space:` and a name."""

    @overload
    async def get(self, key: str) -> Any: ...
    @overload
    async def get(self, key: str, model: type[T]) -> T | None: ...
    async def get(self, key: str, model: Any = Any) -> Any:
        """Return the value of a key, validated as the given type; None when the key has no value."""
        entry = await self.entry(key)
        return None if entry.deleted else codec(model).decode(dumps(entry.value))

    async def entry(self, key: str, *, version: int | None = None) -> StateEntry:
        """Return the present version of a key with its writer, or a former version that is still kept.

        Raises:
            NotFound: when the former version is not kept any more, or never was.
        """
        wanted = {} if version is None else {"version": arguments.whole("version", version, 1, 2**53)}
        return _entry(key, await self._ask(Verb.STATE_GET, key, **wanted))

    async def put(self, key: str, value: Any, *, if_version: int | None = None) -> int:
        """Write a value under a key, and return its version; with `if_version` only in place of that version.

        The version 0 stands for a key that has no value.

        Raises:
            VersionConflict: when the key has another version; nothing is written.
            TooLarge: when the value is over the inline limit, and no blob store takes it.
        """
        return await self._write(key, if_version, value=loads(encode_any(value)))

    async def merge(self, key: str, patch: dict[str, Any], *, if_version: int | None = None) -> int:
        """Change members of the object under a key in one step, and return its version; None removes a member.

        The patch is a JSON merge patch (RFC 7396): objects are merged, everything else is replaced.
        """
        return await self._write(key, if_version, patch=loads(encode_any(patch)))

    async def delete(self, key: str, *, if_version: int | None = None) -> None:
        """Remove the value of a key; the next value continues the key's version numbers."""
        await self._write(key, if_version, delete=True)

    async def update(self, key: str, change: Callable[[Any], Any]) -> Any:
        """Replace the value of a key by what a function makes of it, and return the new value.

        The function gets None for a key without a value. It is called again when another writer was faster, so it must
        do nothing but compute.

        Raises:
            VersionConflict: when other writers were faster `MAX_UPDATE_TRIES` times.
        """
        for left in reversed(range(MAX_UPDATE_TRIES)):
            entry = await self.entry(key)
            value = loads(encode_any(change(entry.value)))
            try:
                await self.put(key, value, if_version=0 if entry.deleted else entry.version)
            except VersionConflict:
                if not left:
                    raise
            else:
                return value
        raise AssertionError("the last try returns or raises")

    async def entries(
        self, prefix: str = "", *, reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[StateEntry]:
        """Yield the keys that have a value and begin with `prefix`, with version and writer, but without the value.

        They come in order, or the last one first; `limit` bounds their number.
        """
        where = {"space": self.name, "reverse": reverse}
        if prefix:
            where["prefix"] = arguments.text("prefix", prefix, shortest=1, longest=MAX_STATE_NAME_BYTES)
        left = arguments.whole("limit", limit, 1, 2**53) if limit is not None else 2**53
        after: str | None = None
        while True:
            page = await self._port.ask_state(Verb.STATE_LIST, where | {"after": after, "limit": min(left, STATE_PAGE)})
            for row in page["keys"][:left]:
                yield _entry(row["key"], row)
            left -= len(page["keys"])
            if left <= 0 or (after := page["next"]) is None:
                return

    async def history(self, key: str) -> list[StateEntry]:
        """Return the kept versions of a key with their writers, the latest first, without the values."""
        answer = await self._ask(Verb.STATE_HISTORY, key)
        return [_entry(key, row) for row in answer["versions"]]

    async def watch(self, key: str) -> AsyncIterator[StateEntry]:
        """Yield the present version of a key, and every later one that is seen, without end.

        A change is seen after 1 s at most; of several changes within that time only the last is.
        """
        seen = -1
        pauses = WATCH_PAUSES.pauses()
        while True:
            entry = await self.entry(key)
            if entry.version != seen:
                seen, pauses = entry.version, WATCH_PAUSES.pauses()
                yield entry
            await asyncio.sleep(next(pauses))

    async def _write(self, key: str, if_version: int | None, **change: Any) -> int:
        if if_version is not None:
            change["if_version"] = arguments.whole("if_version", if_version, 0, 2**53)
        if self._keeper:
            change["keeper"] = self._keeper
        return int((await self._ask(Verb.STATE_PUT, key, **change))["version"])

    async def _ask(self, verb: Verb, key: str, **more: Any) -> dict[str, Any]:
        name = arguments.text("key", key, shortest=1, longest=MAX_STATE_NAME_BYTES)
        return await self._port.ask_state(verb, {"space": self.name, "key": name} | more)


def reserved(space: SharedState, keeper: str) -> SharedState:
    """Return the shared state of a reserved space for the part of Coditect that keeps it, and alone may write it."""
    return SharedState(space._port, space.name, keeper=keeper)


def _entry(key: str, row: dict[str, Any]) -> StateEntry:
    return StateEntry(
        key, row["version"], row.get("value"), row["writer"], row["task"], row["at_ms"], deleted=row["deleted"]
    )
