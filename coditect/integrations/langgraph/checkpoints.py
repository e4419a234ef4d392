"""LangGraph's checkpoints in shared state: a space (key namespace) per thread, a key per checkpoint and task's writes.

::

    langgraph                                  thread → {}, so that all threads can be listed
    langgraph:<thread>
        checkpoint/<namespace>/<checkpoint>    parent, checkpoint, metadata
        writes/<namespace>/<checkpoint>/<task> index → path, channel, value

Checkpoint ids grow with time, so that the last key of a namespace is its latest checkpoint. Writes may be there before
their checkpoint is.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote

from coditect.blobs import NO_BLOBS
from coditect.client.client import Client
from coditect.collaboration.state import SharedState, reserved
from coditect.errors import InputError, TooLarge, VersionConflict
from coditect.wire.state import LANGGRAPH

THREADS = "langgraph"
AT_ONCE = 20
"""The number of keys that are removed or copied at once."""
LARGEST_BYTES = 740_000
"""The most bytes of a checkpoint with its metadata, or of a task's writes, that are kept without a blob store.

The control plane keeps them in base64, which makes them a third larger, in a value of 1,000,000 bytes at most.
"""
Packed = tuple[str, bytes]
"""A value as LangGraph's serializer writes it: its type and its bytes."""


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """The identity of a LangGraph checkpoint: its thread, the namespace of its graph within the thread, and its id."""

    thread: str
    namespace: str = ""
    checkpoint: str = ""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> CheckpointPlace:
        """Return the thread, namespace and checkpoint id that a graph's configuration names; the last two may be empty.

        Raises:
            InputError: when it names no thread.
        """
        given = config.get("configurable") or {}
        if (thread := given.get("thread_id")) is None:
            fix = '{"configurable": {"thread_id": "..."}}'
            raise InputError("A checkpoint belongs to a thread", parameter="config", fix=fix)
        return cls(str(thread), given.get("checkpoint_ns") or "", given.get("checkpoint_id") or "")

    @property
    def key(self) -> str:
        """The key under which the shared state of the thread holds the checkpoint."""
        return f"checkpoint/{_part(self.namespace)}/{_part(self.checkpoint)}"

    def writes(self, task: str = "") -> str:
        """Return the key of a LangGraph task's writes; without a task, the prefix of the keys of all tasks' writes."""
        return f"writes/{_part(self.namespace)}/{_part(self.checkpoint)}/{_part(task)}"

    def named_by(self, key: str) -> CheckpointPlace:
        """Return the place of the checkpoint in the same thread to which a key belongs, its own or of writes."""
        _, namespace, checkpoint = key.split("/")[:3]
        return replace(self, namespace=unquote(namespace), checkpoint=unquote(checkpoint))


def _part(text: str) -> str:
    return quote(text, safe=":|")


@dataclass(frozen=True, slots=True)
class KeptCheckpoint:
    """A checkpoint as it is stored: its parent's id, and the checkpoint and its metadata as bytes."""

    parent: str | None
    checkpoint: Packed
    metadata: Packed


@dataclass(frozen=True, slots=True)
class KeptWrite:
    """A LangGraph task's write to a channel, for the next checkpoint; `order` sorts writes as they are applied."""

    path: str
    task: str
    index: int
    channel: str
    value: Packed

    @property
    def order(self) -> tuple[str, str, int]:
        """The order in which the writes of one checkpoint are applied."""
        return self.path, self.task, self.index


class Checkpoints:
    """The checkpoints of all LangGraph threads, in a client's shared state; methods raise `SharedState`'s errors."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def _space(self, thread: str) -> SharedState:
        return reserved(self._client.space(f"{THREADS}:{thread}"), LANGGRAPH)

    @property
    def _index(self) -> SharedState:
        return reserved(self._client.space(THREADS), LANGGRAPH)

    async def threads(self) -> list[str]:
        """Return the ids of the stored LangGraph threads: those in which a checkpoint without a parent was stored."""
        return [one.key async for one in self._index.entries()]

    async def places(self, within: CheckpointPlace, *, every_namespace: bool = False) -> list[CheckpointPlace]:
        """Return thread, namespace and id of the checkpoints in a LangGraph namespace or whole thread, latest first."""
        prefix = "checkpoint/" if every_namespace else replace(within, checkpoint="").key
        found = [within.named_by(one.key) async for one in self._space(within.thread).entries(prefix)]
        return sorted(found, key=lambda place: place.checkpoint, reverse=True)

    async def latest(self, within: CheckpointPlace) -> CheckpointPlace | None:
        """Return thread, namespace and id of the latest checkpoint in a LangGraph namespace; None when it has none."""
        prefix = replace(within, checkpoint="").key
        async for entry in self._space(within.thread).entries(prefix, reverse=True, most=1):
            return within.named_by(entry.key)
        return None

    async def read(self, place: CheckpointPlace) -> KeptCheckpoint | None:
        """Return the stored checkpoint with a thread, namespace and id; None when there is none."""
        found = await self._space(place.thread).get(place.key)
        if found is None:
            return None
        return KeptCheckpoint(found["parent"], _unpacked(found["checkpoint"]), _unpacked(found["metadata"]))

    async def writes(self, place: CheckpointPlace) -> list[KeptWrite]:
        """Return what LangGraph tasks wrote after a checkpoint, in the order in which the next one applies it."""
        space, prefix = self._space(place.thread), place.writes()
        keys = [one.key async for one in space.entries(prefix)]
        values = await asyncio.gather(*(space.get(key) for key in keys))
        found = [
            _as_write(unquote(key.removeprefix(prefix)), index, row)
            for key, rows in zip(keys, values, strict=True)
            for index, row in (rows or {}).items()
        ]
        return sorted(found, key=lambda write: write.order)

    async def put(self, place: CheckpointPlace, kept: KeptCheckpoint) -> None:
        """Store a checkpoint under its thread, namespace and id, and replace an earlier one there.

        Raises:
            TooLarge: when it is over `LARGEST_BYTES`, and there is no blob store.
        """
        self._check_size("A checkpoint", kept.checkpoint, kept.metadata)
        if kept.parent is None:
            await self._put_if_new(self._index, place.thread, {})
        row = {"parent": kept.parent, "checkpoint": _packed(kept.checkpoint), "metadata": _packed(kept.metadata)}
        await self._space(place.thread).put(place.key, row)

    async def put_writes(self, place: CheckpointPlace, task: str, writes: Sequence[KeptWrite]) -> None:
        """Store a LangGraph task's writes, except those whose index has a stored write already.

        Writes to LangGraph's special channels, whose indexes are negative, replace stored ones.

        Raises:
            VersionConflict: when other writers of the same task were faster each time.
            TooLarge: when the writes are over `LARGEST_BYTES`, and there is no blob store.
        """
        self._check_size("What a task writes", *(one.value for one in writes))
        space, key = self._space(place.thread), place.writes(task)
        rows = {str(one.index): _as_row(one) for one in writes}
        if await self._put_if_new(space, key, rows):
            return
        special = {index: row for index, row in rows.items() if index.startswith("-")}
        await space.update(key, lambda before: rows | (before or {}) | special)

    async def delete(self, thread: str) -> None:
        """Remove all checkpoints of a LangGraph thread, and all writes of its tasks."""
        await self._remove(thread, [one.key async for one in self._space(thread).entries()])
        await self._index.delete(thread)

    async def copy(self, source: str, target: str) -> None:
        """Copy all checkpoints of a LangGraph thread, and all writes of its tasks, to another thread."""
        source_space, target_space = self._space(source), self._space(target)
        keys = [one.key async for one in source_space.entries()]
        if not keys or source == target:
            return

        async def copy_key(key: str) -> None:
            if (value := await source_space.get(key)) is not None:
                await target_space.put(key, value)

        await self._put_if_new(self._index, target, {})
        writes_first = sorted(keys, key=lambda key: (key.startswith("checkpoint/"), key))
        for batch in _batches(writes_first):
            await asyncio.gather(*map(copy_key, batch))

    async def prune(self, latest: CheckpointPlace, keep: Collection[str]) -> None:
        """Remove the checkpoints of a namespace up to the latest, with their writes, except those whose ids are kept.

        Newer ones stay, since a graph may be at work.
        """
        prefixes = (replace(latest, checkpoint="").key, latest.writes().removesuffix(f"{_part(latest.checkpoint)}/"))
        keys = [one.key for prefix in prefixes async for one in self._space(latest.thread).entries(prefix)]
        ids = [latest.named_by(key).checkpoint for key in keys]
        old = [key for key, name in zip(keys, ids, strict=True) if name <= latest.checkpoint and name not in keep]
        await self._remove(latest.thread, old)

    async def remove(self, place: CheckpointPlace) -> None:
        """Remove one checkpoint with its tasks' writes."""
        writes = [one.key async for one in self._space(place.thread).entries(place.writes())]
        await self._remove(place.thread, [place.key, *writes])

    async def _remove(self, thread: str, keys: Sequence[str]) -> None:
        space = self._space(thread)
        for batch in _batches(keys):
            await asyncio.gather(*map(space.delete, batch))

    def _check_size(self, name: str, *values: Packed) -> None:
        size_bytes = sum(len(body) for _, body in values)
        if size_bytes > LARGEST_BYTES and self._client._control.blobs is NO_BLOBS:
            fix = "set CODITECT_BLOB_URL for this process, or keep less in the graph's state"
            raise TooLarge(f"{name} is over the inline limit", bytes=size_bytes, limit=LARGEST_BYTES, fix=fix)

    @staticmethod
    async def _put_if_new(space: SharedState, key: str, value: Any) -> bool:
        """Store a value under a key unless the key has a value already; tell whether the value was stored."""
        try:
            await space.put(key, value, if_version=0)
        except VersionConflict:
            return False
        return True


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[begin : begin + AT_ONCE] for begin in range(0, len(keys), AT_ONCE))


def _packed(value: Packed) -> list[str]:
    return [value[0], b64encode(value[1]).decode()]


def _unpacked(value: Sequence[str]) -> Packed:
    return value[0], b64decode(value[1])


def _as_row(write: KeptWrite) -> list[Any]:
    return [write.path, write.channel, *_packed(write.value)]


def _as_write(task: str, index: str, row: Sequence[str]) -> KeptWrite:
    return KeptWrite(row[0], task, int(index), row[1], _unpacked(row[2:]))
