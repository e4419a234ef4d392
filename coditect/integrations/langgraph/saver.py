"""The checkpointer of LangGraph graphs whose checkpoints are in the fleet's shared state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from coditect.client.client import Client
from coditect.errors import InputError, InvalidTask
from coditect.integrations.langgraph.checkpoints import CheckpointPlace, Checkpoints, KeptCheckpoint, KeptWrite
from coditect.integrations.langgraph.loops import within
from coditect.sync.client import SyncClient

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

    # -- async ------------------------------------------------------------------------------------------

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the configuration names, or the latest of its thread and namespace, or None."""
        return await self._loop.call(self._get(config))

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
        while (one := await self._loop.call(_next(found))) is not None:
            yield one

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint, and return the configuration that names it."""
        return await self._loop.call(self._put(config, checkpoint, metadata))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a LangGraph task has written for the next checkpoint; idempotent."""
        await self._loop.call(self._put_writes(config, writes, task_id, task_path))

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove all checkpoints of a LangGraph thread, and all writes of its tasks."""
        await self._loop.call(self._kept.delete(str(thread_id)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that the given runs made, and their tasks' writes, in all threads.

        A later checkpoint with a `DeltaChannel` may need them: see `adelete_thread` and `aprune` for safe removals.
        """
        await self._loop.call(self._delete_for_runs(frozenset(run_ids)))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints of a LangGraph thread, and all writes of its tasks, to another thread."""
        await self._loop.call(self._kept.copy(str(source_thread_id), str(target_thread_id)))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Keep only the latest checkpoint of each namespace (`keep_latest`), or none (`delete`), of the given threads.

        Earlier checkpoints stay where the state of a `DeltaChannel` is still to be computed from them.

        Raises:
            InputError: when there is no such strategy.
        """
        await self._loop.call(self._prune([str(one) for one in thread_ids], strategy))

    # -- blocking ---------------------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that a configuration names, or the latest, or None; the blocking `aget_tuple`."""
        return self._loop.run(self._get(config))

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
        while (one := self._loop.run(_next(found))) is not None:
            yield one

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, and return the configuration that names it; the blocking form of `aput`."""
        return self._loop.run(self._put(config, checkpoint, metadata))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a LangGraph task has written for the next checkpoint; the blocking form of `aput_writes`."""
        self._loop.run(self._put_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Remove all checkpoints and writes of a LangGraph thread; the blocking form of `adelete_thread`."""
        self._loop.run(self._kept.delete(str(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that the given runs made; the blocking form of `adelete_for_runs`."""
        self._loop.run(self._delete_for_runs(frozenset(run_ids)))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a LangGraph thread to another thread; the blocking form of `acopy_thread`."""
        self._loop.run(self._kept.copy(str(source_thread_id), str(target_thread_id)))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove earlier checkpoints of LangGraph threads, or all; the blocking form of `aprune`."""
        self._loop.run(self._prune([str(one) for one in thread_ids], strategy))

    # -- on the client's loop ---------------------------------------------------------------------------

    async def _get(self, config: RunnableConfig) -> CheckpointTuple | None:
        place = CheckpointPlace.of(config)
        found = place if place.checkpoint else await self._kept.latest(place)
        return None if found is None else await self._whole(found)

    async def _whole(self, place: CheckpointPlace) -> CheckpointTuple | None:
        """Return a stored checkpoint with its tasks' writes, which the next one applies; None when it is not stored."""
        kept, writes = await asyncio.gather(self._kept.read(place), self._kept.writes(place))
        if kept is None:
            return None
        loads = self.serde.loads_typed
        parent = None if kept.parent is None else _config(place, kept.parent)
        pending = [(one.task, one.channel, loads(one.value)) for one in writes]
        return CheckpointTuple(
            _config(place, place.checkpoint), loads(kept.checkpoint), loads(kept.metadata), parent, pending
        )

    async def _found(
        self, config: RunnableConfig | None, wanted: dict[str, Any], before: RunnableConfig | None, limit: int | None
    ) -> AsyncGenerator[CheckpointTuple]:
        most = float("inf") if limit is None else limit
        until = (
            CheckpointPlace.of({"configurable": {"thread_id": ""} | before["configurable"]}).checkpoint
            if before
            else ""
        )
        for place in await self._places(config):
            if most <= 0:
                return
            if until and place.checkpoint >= until:
                continue
            one = await self._whole(place)
            if one is not None and _fits(one.metadata, wanted):
                most -= 1
                yield one

    async def _places(self, config: RunnableConfig | None) -> Sequence[CheckpointPlace]:
        """Return thread, namespace and id of all threads' checkpoints, or of those in a configuration, latest first."""
        if config is None:
            threads = await self._kept.threads()
            found = [await self._kept.places(CheckpointPlace(one), every_namespace=True) for one in threads]
            return sorted((one for some in found for one in some), key=lambda one: one.checkpoint, reverse=True)
        place = CheckpointPlace.of(config)
        every = "checkpoint_ns" not in config["configurable"]
        places = await self._kept.places(place, every_namespace=every)
        return [one for one in places if place.checkpoint in ("", one.checkpoint)]

    async def _put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata
    ) -> RunnableConfig:
        place, dumps = CheckpointPlace.of(config), self.serde.dumps_typed
        kept = KeptCheckpoint(
            place.checkpoint or None, dumps(checkpoint), dumps(get_checkpoint_metadata(config, metadata))
        )
        new = CheckpointPlace(place.thread, place.namespace, checkpoint["id"])
        await self._kept.put(new, kept)
        return _config(new, new.checkpoint)

    async def _put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> None:
        rows = [
            KeptWrite(task_path, task_id, WRITES_IDX_MAP.get(channel, index), channel, self.serde.dumps_typed(value))
            for index, (channel, value) in enumerate(writes)
        ]
        await self._kept.put_writes(CheckpointPlace.of(config), task_id, rows)

    async def _delete_for_runs(self, runs: Collection[str]) -> None:
        for thread in await self._kept.threads() if runs else ():
            places = await self._kept.places(CheckpointPlace(thread), every_namespace=True)
            for place in places:
                kept = await self._kept.read(place)
                if kept is not None and self.serde.loads_typed(kept.metadata).get("run_id") in runs:
                    await self._kept.remove(place)

    async def _prune(self, threads: Sequence[str], strategy: str) -> None:
        if strategy not in ("keep_latest", "delete"):
            raise InputError("There is no such strategy", parameter="strategy", known=["keep_latest", "delete"])
        for thread in threads:
            if strategy == "delete":
                await self._kept.delete(thread)
                continue
            places = await self._kept.places(CheckpointPlace(thread), every_namespace=True)
            for namespace in dict.fromkeys(place.namespace for place in places):
                latest, *earlier = (place for place in places if place.namespace == namespace)
                await self._kept.prune(latest, await self._needed(latest, earlier))

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
            checkpoint, metadata = (self.serde.loads_typed(one) for one in (kept.checkpoint, kept.metadata))
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
