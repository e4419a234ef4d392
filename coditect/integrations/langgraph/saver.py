"""The checkpointer of LangGraph graphs whose checkpoints are in the fleet's shared state.

LangGraph's checkpoints in shared state: a space (key namespace) per thread, a key per checkpoint and task's writes.

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
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, unquote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from coditect.blobs import NO_BLOBS
from coditect.client.client import Client
from coditect.collaboration.state import SharedState, reserved
from coditect.errors import InputError, InvalidTask, TooLarge, VersionConflict
from coditect.integrations.langgraph.node import within
from coditect.sync import SyncClient
from coditect.wire.control import LANGGRAPH

P = ParamSpec("P")
T = TypeVar("T")
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
        configurable = config.get("configurable") or {}
        if (thread := configurable.get("thread_id")) is None:
            fix = '{"configurable": {"thread_id": "..."}}'
            raise InputError("A checkpoint belongs to a thread", parameter="config", fix=fix)
        return cls(str(thread), configurable.get("checkpoint_ns") or "", configurable.get("checkpoint_id") or "")

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


@dataclass(frozen=True, slots=True, order=True)
class KeptWrite:
    """A LangGraph task's write to a channel, for the next checkpoint; the fields' order sorts writes as applied."""

    path: str
    task: str
    index: int
    channel: str
    value: Packed


class Checkpoints:
    """The checkpoints of all LangGraph threads, in a client's shared state; methods raise `SharedState`'s errors."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def _space(self, thread: str) -> SharedState:
        return reserved(self._client.state(f"{THREADS}:{thread}"), LANGGRAPH)

    @property
    def _index(self) -> SharedState:
        return reserved(self._client.state(THREADS), LANGGRAPH)

    async def threads(self) -> list[str]:
        """Return the ids of the stored LangGraph threads."""
        return [entry.key async for entry in self._index.entries()]

    async def places(self, within: CheckpointPlace, *, every_namespace: bool = False) -> list[CheckpointPlace]:
        """Return thread, namespace and id of the checkpoints in a LangGraph namespace or whole thread, latest first."""
        prefix = "checkpoint/" if every_namespace else replace(within, checkpoint="").key
        found = [within.named_by(entry.key) async for entry in self._space(within.thread).entries(prefix)]
        return sorted(found, key=lambda place: place.checkpoint, reverse=True)

    async def latest(self, within: CheckpointPlace) -> CheckpointPlace | None:
        """Return thread, namespace and id of the latest checkpoint in a LangGraph namespace; None when it has none."""
        prefix = replace(within, checkpoint="").key
        async for entry in self._space(within.thread).entries(prefix, reverse=True, limit=1):
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
        keys = [entry.key async for entry in space.entries(prefix)]
        values = await asyncio.gather(*(space.get(key) for key in keys))
        found = [
            _as_write(unquote(key.removeprefix(prefix)), index, row)
            for key, rows in zip(keys, values, strict=True)
            for index, row in (rows or {}).items()
        ]
        return sorted(found)

    async def put(self, place: CheckpointPlace, kept: KeptCheckpoint) -> None:
        """Store a checkpoint under its thread, namespace and id, and replace an earlier one there.

        Raises:
            TooLarge: when it is over `LARGEST_BYTES`, and there is no blob store.
        """
        self._check_size("A checkpoint", kept.checkpoint, kept.metadata)
        if kept.parent is None:  # before it, too: a crash leaves no thread that is not listed
            await self._put_if_new(self._index, place.thread, {})
        row = {"parent": kept.parent, "checkpoint": _packed(kept.checkpoint), "metadata": _packed(kept.metadata)}
        await self._space(place.thread).put(place.key, row)
        await self._put_if_new(self._index, place.thread, {})  # the thread may have been deleted since its first one

    async def put_writes(self, place: CheckpointPlace, task: str, writes: Sequence[KeptWrite]) -> None:
        """Store a LangGraph task's writes, except those whose index has a stored write already.

        Writes to LangGraph's special channels, whose indexes are negative, replace stored ones.

        Raises:
            VersionConflict: when other writers of the same task were faster each time.
            TooLarge: when the writes are over `LARGEST_BYTES`, and there is no blob store.
        """
        self._check_size("What a task writes", *(write.value for write in writes))
        space, key = self._space(place.thread), place.writes(task)
        rows = {str(write.index): _as_row(write) for write in writes}
        if await self._put_if_new(space, key, rows):
            return
        special = {index: row for index, row in rows.items() if index.startswith("-")}
        await space.update(key, lambda before: rows | (before or {}) | special)

    async def delete(self, thread: str) -> None:
        """Remove all checkpoints of a LangGraph thread, and all writes of its tasks.

        The thread leaves the list first. A checkpoint that is stored during the removal puts the thread back.
        """
        await self._index.delete(thread)
        await self._remove(thread, [entry.key async for entry in self._space(thread).entries()])

    async def copy(self, source: str, target: str) -> None:
        """Copy all checkpoints of a LangGraph thread, and all writes of its tasks, to another thread."""
        source_space, target_space = self._space(source), self._space(target)
        keys = [entry.key async for entry in source_space.entries()]
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
        keys = [entry.key for prefix in prefixes async for entry in self._space(latest.thread).entries(prefix)]
        ids = [latest.named_by(key).checkpoint for key in keys]
        old = [key for key, name in zip(keys, ids, strict=True) if name <= latest.checkpoint and name not in keep]
        await self._remove(latest.thread, old)

    async def remove(self, place: CheckpointPlace) -> None:
        """Remove one checkpoint with its tasks' writes."""
        writes = [entry.key async for entry in self._space(place.thread).entries(place.writes())]
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


_WRITTEN_TYPES = frozenset({"null", "bytes", "bytearray", "msgpack"})
"""The formats that LangGraph's serializer writes today."""
_SNAPSHOT = "_DeltaSnapshot"
"""The class in which LangGraph puts the whole value of a `DeltaChannel`."""


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer, which rebuilds the values of safe and of listed classes, and runs nothing else."""

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Rebuild a value; refuse the formats that this serializer does not write, such as JSON with constructors."""
        if data[0] not in _WRITTEN_TYPES:
            raise InvalidTask("A checkpoint has a value in a format that is not read", format=data[0][:40])
        return super().loads_typed(data)


def _both_forms(
    method: Callable[Concatenate[CoditectSaver, P], Coroutine[Any, Any, T]],
) -> tuple[Callable[Concatenate[CoditectSaver, P], Coroutine[Any, Any, T]], Callable[Concatenate[CoditectSaver, P], T]]:
    """Return the awaited and the blocking form of a saver's method, both of which run it on the client's loop."""

    @wraps(method)
    async def call(self: CoditectSaver, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._loop.call(method(self, *args, **kwargs))

    @wraps(method)
    def run(self: CoditectSaver, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self, *args, **kwargs))

    return call, run


class CoditectSaver(BaseCheckpointSaver[int]):
    """A checkpointer for `graph.compile(checkpointer=...)`: any process of the fleet can resume from its checkpoints.

    A checkpoint is committed by the control plane when `put` returns. Threads and event loops may share a saver. It
    works with blocking and with async graphs where it has a `SyncClient`; with a `Client`, blocking graphs must run in
    another thread than the client's event loop.

    Raises:
        SetupError: when it is made of an async client where no event loop runs.
        ControlPlaneRequired: by every method, when no dispatcher answers.
        InputError: by every method, when the configuration names no thread, or its names are too long.
        TooLarge: by the methods that write, when a checkpoint with its metadata, or what a task writes, is over 740,000
            bytes, and there is no blob store.
    """

    def __init__(
        self,
        client: Client | SyncClient,
        *,
        allowed_msgpack_modules: Iterable[type | tuple[str, ...]] = (),
        serde: SerializerProtocol | None = None,
    ) -> None:
        """Take an open client, and the types of values that checkpoints may have besides LangGraph's safe ones.

        Args:
            client: An open client; it must stay open as long as graphs run.
            allowed_msgpack_modules: Classes, or pairs of a module and a name, that a checkpoint may rebuild. Values of
                any other class come back as plain data, with a warning in the log: whoever writes a checkpoint must not
                choose what runs in the process that reads it.
            serde: Another serializer, which then decides itself which classes it rebuilds.

        Raises:
            InputError: when both `serde` and `allowed_msgpack_modules` are given.
        """
        allowed = tuple(allowed_msgpack_modules)
        if serde is not None and allowed:
            fix = "give the serializer its own list: JsonPlusSerializer(allowed_msgpack_modules=[...])"
            raise InputError("A serializer decides itself which classes it rebuilds", parameter="serde", fix=fix)
        super().__init__(serde=serde or StrictSerializer(allowed_msgpack_modules=allowed))
        inner, self._loop = within(client)
        self._kept = Checkpoints(inner)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield the checkpoints of a configuration, or all, that fit `filter`, `before` and `limit`, latest first."""
        found = self._found(config, filter or {}, before, limit)
        while (checkpoint := await self._loop.call(_next(found))) is not None:
            yield checkpoint

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield at most `limit` checkpoints, the latest first; the blocking form of `alist`."""
        found = self._found(config, filter or {}, before, limit)
        while (checkpoint := self._loop.run(_next(found))) is not None:
            yield checkpoint

    async def _get(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the configuration names, or the latest of its thread and namespace, or None."""
        place = CheckpointPlace.of(config)
        found = place if place.checkpoint else await self._kept.latest(place)
        return None if found is None else await self._whole(found)

    aget_tuple, get_tuple = _both_forms(_get)

    async def _whole(self, place: CheckpointPlace) -> CheckpointTuple | None:
        """Return a stored checkpoint with its tasks' writes, which the next one applies; None when it is not stored."""
        kept, writes = await asyncio.gather(self._kept.read(place), self._kept.writes(place))
        if kept is None:
            return None
        loads = self.serde.loads_typed
        parent = None if kept.parent is None else _config(place, kept.parent)
        pending = [(write.task, write.channel, loads(write.value)) for write in writes]
        return CheckpointTuple(
            _config(place, place.checkpoint), loads(kept.checkpoint), loads(kept.metadata), parent, pending
        )

    async def _found(
        self, config: RunnableConfig | None, wanted: dict[str, Any], before: RunnableConfig | None, limit: int | None
    ) -> AsyncGenerator[CheckpointTuple]:
        most = float("inf") if limit is None else limit
        until = get_checkpoint_id(before) if before else None
        for place in await self._places(config):
            if most <= 0:
                return
            if until and place.checkpoint >= until:
                continue
            whole = await self._whole(place)
            if whole is not None and _fits(whole.metadata, wanted):
                most -= 1
                yield whole

    async def _places(self, config: RunnableConfig | None) -> Sequence[CheckpointPlace]:
        """Return thread, namespace and id of all threads' checkpoints, or of those in a configuration, latest first."""
        if config is None:
            threads = await self._kept.threads()
            places = [
                place
                for thread in threads
                for place in await self._kept.places(CheckpointPlace(thread), every_namespace=True)
            ]
            return sorted(places, key=lambda place: place.checkpoint, reverse=True)
        place = CheckpointPlace.of(config)
        every = "checkpoint_ns" not in config["configurable"]
        places = await self._kept.places(place, every_namespace=every)
        return [candidate for candidate in places if place.checkpoint in ("", candidate.checkpoint)]

    async def _put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint, and return the configuration that names it."""
        place, dumps = CheckpointPlace.of(config), self.serde.dumps_typed
        kept = KeptCheckpoint(
            place.checkpoint or None, dumps(checkpoint), dumps(get_checkpoint_metadata(config, metadata))
        )
        new = CheckpointPlace(place.thread, place.namespace, checkpoint["id"])
        await self._kept.put(new, kept)
        return _config(new, new.checkpoint)

    aput, put = _both_forms(_put)

    async def _put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a LangGraph task has written for the next checkpoint; idempotent."""
        rows = [
            KeptWrite(task_path, task_id, WRITES_IDX_MAP.get(channel, index), channel, self.serde.dumps_typed(value))
            for index, (channel, value) in enumerate(writes)
        ]
        await self._kept.put_writes(CheckpointPlace.of(config), task_id, rows)

    aput_writes, put_writes = _both_forms(_put_writes)

    async def _delete_thread(self, thread_id: str) -> None:
        """Remove all checkpoints of a LangGraph thread, and all writes of its tasks."""
        await self._kept.delete(str(thread_id))

    adelete_thread, delete_thread = _both_forms(_delete_thread)

    async def _delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that the given runs made, and their tasks' writes, in all threads.

        A later checkpoint with a `DeltaChannel` may need them: see `adelete_thread` and `aprune` for safe removals.
        """
        for thread in await self._kept.threads() if run_ids else ():
            places = await self._kept.places(CheckpointPlace(thread), every_namespace=True)
            for place in places:
                kept = await self._kept.read(place)
                if kept is not None and self.serde.loads_typed(kept.metadata).get("run_id") in run_ids:
                    await self._kept.remove(place)

    adelete_for_runs, delete_for_runs = _both_forms(_delete_for_runs)

    async def _copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints of a LangGraph thread, and all writes of its tasks, to another thread."""
        await self._kept.copy(str(source_thread_id), str(target_thread_id))

    acopy_thread, copy_thread = _both_forms(_copy_thread)

    async def _prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep only the latest checkpoint of each namespace (`keep_latest`), or none (`delete`), of the given threads.

        Earlier checkpoints stay where the state of a `DeltaChannel` is still to be computed from them.

        Raises:
            InputError: when there is no such strategy.
        """
        if strategy not in ("keep_latest", "delete"):
            raise InputError("There is no such strategy", parameter="strategy", known=["keep_latest", "delete"])
        for thread in map(str, thread_ids):
            if strategy == "delete":
                await self._kept.delete(thread)
                continue
            places = await self._kept.places(CheckpointPlace(thread), every_namespace=True)
            for namespace in dict.fromkeys(place.namespace for place in places):
                latest, *earlier = (place for place in places if place.namespace == namespace)
                await self._kept.prune(latest, await self._needed(latest, earlier))

    aprune, prune = _both_forms(_prune)

    async def _needed(self, latest: CheckpointPlace, earlier: Sequence[CheckpointPlace]) -> set[str]:
        """Return the ids of the latest checkpoint and of those from which its delta channels are computed.

        A `DeltaChannel` is in a checkpoint only now and then, as a snapshot; its other values are the last snapshot and
        the writes after it, which belong to the checkpoints in between.
        """
        parents, values, delta = dict[str, str | None](), dict[str, set[str]](), set[str]()
        versions: Collection[str] = ()
        for place in (latest, *earlier):
            if (kept := await self._kept.read(place)) is None:
                continue
            checkpoint, metadata = (self.serde.loads_typed(dumped) for dumped in (kept.checkpoint, kept.metadata))
            found = checkpoint["channel_values"]
            parents[place.checkpoint], values[place.checkpoint] = kept.parent, set(found)
            delta |= set(metadata.get("counters_since_delta_snapshot") or ())
            delta |= {name for name, value in found.items() if type(value).__name__ == _SNAPSHOT}
            versions = versions or checkpoint["channel_versions"]
        needed, missing, cursor = {latest.checkpoint}, delta & set(versions), latest.checkpoint
        while missing := missing - values.get(cursor, set()):
            if (parent := parents.get(cursor)) is None:
                break
            needed.add(parent)
            cursor = parent
        return needed


def _config(place: CheckpointPlace, checkpoint: str) -> RunnableConfig:
    named = {"thread_id": place.thread, "checkpoint_ns": place.namespace, "checkpoint_id": checkpoint}
    return {"configurable": named}


def _fits(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(metadata.get(name) == value for name, value in wanted.items())


async def _next(found: AsyncGenerator[CheckpointTuple]) -> CheckpointTuple | None:
    return await anext(found, None)
