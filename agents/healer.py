"""Two agents that keep services well: one watches them, one examines, mends and verifies.

A service is what its operator named, by `coditect schedule heal`: a folder as `agents/deployment/service.py`
draws it, a command, or a Deployment (`agents/healing/watched.py`). The pattern `self_healing` begins with the watch,
so that a schedule keeps each service watched; `agents/doctors.py` has who diagnoses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from agents.healing.diagnosis import Bounds, Cause, ServiceEvidence, trouble_of
from agents.healing.signs import LogReader, LogSign
from agents.healing.watched import Watched
from coditect import Agent, Context, PlainContext, Retry
from coditect.errors import InputError

T = TypeVar("T")


@asynccontextmanager
async def threads(agent: Agent) -> AsyncIterator[ThreadPoolExecutor]:
    """Yield a thread for each task: the few of the event loop would let one service that hangs blind all watches."""
    pool = ThreadPoolExecutor(agent.slots, thread_name_prefix=agent.name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


detector = Agent("detector", version="1.0.0", slots=256, tags=frozenset({"operations"}), lifespan=threads)
healer = Agent("healer", version="1.0.0", slots=16, tags=frozenset({"operations"}), lifespan=threads)

UNWELL = "service.unwell"
"""The type of the event that tells of a service that is not well; its data has `service` and `trouble`."""
SPACE = "healing"
"""The shared state with a record for each service by its name.

`open` is true from the first look of a healing until the service is well, `task` the last such healing, `healed_at` the
instants of the latest ones that ended well, and `logs` the offsets, by the signs, from which lines count.
"""
_BOUNDS = Bounds()
_LOOK_SECONDS = 0.25
_GONE_SECONDS = 60
_TWICE = 2
"""A service is unwell, and well again, when two looks in a row say so."""
_OFTEN, _OFTEN_SECONDS = 3, 600
"""A service that was healed so often within this time is healed for nothing: a person must look."""
_PATIENT = Retry(max_attempts=5, first="200ms", cap="5s")


class ServiceRequest(BaseModel):
    """A request about one service, in one round of its healing."""

    model_config = ConfigDict(extra="forbid")

    service: Watched
    round: int = Field(1, ge=1)


class WatchRequest(BaseModel):
    """A request to watch a service for a time."""

    model_config = ConfigDict(extra="forbid")

    service: Watched
    hours: float = Field(1, gt=0, le=160, description="how long")


class Health(BaseModel):
    """The end of a look, a watch or a verification: well or not, and why not."""

    well: bool
    why: str


class FixRequest(ServiceRequest):
    """A request to apply the remedy for one cause to a service."""

    cause: Cause


class Fixed(BaseModel):
    """The report of a remedy: for which cause, and what was done."""

    cause: Cause
    done: str


class VerifyRequest(ServiceRequest):
    """A request to wait until a service is well."""

    within_seconds: float | None = Field(None, gt=0, le=100, description="default: what its kind needs")


@detector.capability("service.look", timeout="1m", retry=_PATIENT, description="Looks once whether a service is well.")
async def look(task: ServiceRequest, ctx: Context) -> Health:
    """Return whether the service is well by one look, in which no line of a log counts.

    Raises:
        InputError: not retryable; there is no such service.
    """
    why = await _in_thread(ctx, lambda: _trouble(task.service, task.service.readers(None)))
    return Health(well=not why, why=why)


@detector.capability(
    "service.watch", timeout="7d", retry=Retry(max_attempts=100), description="Waits until a service is unwell."
)
async def watch(task: WatchRequest, ctx: Context) -> Health:
    """Return what is wrong with a service as soon as two looks in a row find it unwell; well when the time is over.

    A service that an earlier healing left to a person counts as unwell only after it was well again. While a service is
    being released or mended, it does not count as unwell. The event `service.unwell` tells others of it.

    Raises:
        InputError: not retryable; there is no such service.
    """
    service, clock = task.service, asyncio.get_running_loop().time
    end = clock() + task.hours * 3_600
    record = await _record(ctx, service)
    readers, left_alone, unwell, why = service.readers(record.get("logs")), bool(record.get("open")), 0, ""
    counted: list[list[int]] = []
    while clock() < end:
        try:
            why = await _in_thread(ctx, lambda: _trouble(service, readers))
        except InputError:  # a service that is gone would have a failed workflow every ten seconds
            await asyncio.sleep(_GONE_SECONDS)
            raise
        if counted != (counted := [reader.counted for reader in readers]):  # for the next watch, or attempt
            await _note(ctx, service, logs=_offsets(readers))
        if not why and left_alone:
            left_alone = False
            await _note(ctx, service, open=False)  # a person mended it
        unwell = unwell + 1 if why and not left_alone else 0
        if unwell == _TWICE:
            async with ctx.lock(service.kind.lock):
                why = await _in_thread(ctx, lambda: _trouble(service, readers))
            if why:
                await _note(ctx, service, logs=_offsets(readers))
                await ctx.emit(UNWELL, subject=service.name, service=service.name, trouble=why)
                return Health(well=False, why=why)
            unwell = 0
        pause = service.every_seconds or service.kind.every_seconds
        await asyncio.sleep(min(pause, _LOOK_SECONDS) if why else pause)
    return Health(well=True, why="")


@healer.capability("service.examine", timeout="1m", retry=_PATIENT, description="Gathers the evidence about a service.")
async def examine_service(task: ServiceRequest, ctx: Context) -> ServiceEvidence:
    """Return the evidence about a service, and note that its healing is under way. Changes nothing of the service."""
    service = task.service
    if task.round == 1:
        await _note(ctx, service, open=True, task=ctx.task_id)
    logs = (await _record(ctx, service)).get("logs")
    return await _in_thread(ctx, lambda: _examine(service, service.readers(logs)))


@healer.capability("service.fix", timeout="3m", retry=_PATIENT, description="Mends a service of a cause.")
def fix(task: FixRequest, ctx: PlainContext) -> Fixed:
    """Apply the remedy for a cause to a service that is not well; one that is well meanwhile is left alone.

    Only one fix or release of a service goes on at once, also when a fix is canceled amid its remedy. A fix that is
    executed again after a fault looks again, and finds what the first execution did.

    Raises:
        LockLost: retryable; the fix took too long.
    """
    service = task.service
    with ctx.lock(service.kind.lock):  # as a release does
        heard = task.cause is Cause.NAMED and any(isinstance(sign, LogSign) for sign in service.signs)
        if not heard and not trouble_of(_examine(service, ()), _BOUNDS):
            return Fixed(cause=task.cause, done="nothing: it is well")
        return Fixed(cause=task.cause, done=service.kind.remedy(task.cause))


@healer.capability("service.verify", timeout="2m", retry=_PATIENT, description="Waits until a service is well.")
async def verify(task: VerifyRequest, ctx: Context) -> Health:
    """Return that the service is well once two looks in a row say so, or what is wrong when the time is over.

    A service without a process is not waited for, unless something else starts it. A service that was healed three
    times within ten minutes does not count as well: the same fault comes back, and a person must look.
    """
    service, clock, well = task.service, asyncio.get_running_loop().time, 0
    end = clock() + (task.within_seconds or service.kind.patience_seconds)
    readers = service.readers(None)
    while True:
        evidence = await _in_thread(ctx, lambda: _examine(service, readers))
        why = trouble_of(evidence, _BOUNDS)
        well = 0 if why else well + 1
        gone = not evidence.running and not service.kind.waits_when_gone
        if well == _TWICE or (why and (gone or clock() >= end)):
            break
        await asyncio.sleep(_LOOK_SECONDS)
    return Health(well=False, why=why) if why else await _healed(ctx, service, readers)


async def _healed(ctx: Context, service: Watched, readers: list[LogReader]) -> Health:
    """Note that a service is well again; it is not if it was so too often of late."""
    now = time.time()
    recent = [at for at in (await _record(ctx, service)).get("healed_at", ()) if now - at < _OFTEN_SECONDS]
    if len(recent) >= _OFTEN:
        return Health(well=False, why=f"it was healed {len(recent)} times within {_OFTEN_SECONDS // 60} minutes")
    await _note(ctx, service, open=False, healed_at=[*recent, now], logs=_offsets(readers))
    return Health(well=True, why="")


async def _record(ctx: Context, service: Watched) -> dict[str, Any]:
    return await ctx.state(SPACE).get(service.name) or {}


async def _note(ctx: Context, service: Watched, **fields: Any) -> None:
    await ctx.state(SPACE).merge(service.name, fields)


def _trouble(service: Watched, readers: Sequence[LogReader]) -> str:
    """Return what one look shows to be wrong with a service; empty if nothing.

    A process that has just been started need not answer yet: each release would be a fault otherwise.
    """
    found, kind = service.kind.glance(), service.kind
    begins = found.age_seconds is not None and found.age_seconds < kind.patience_seconds
    silent = {"answers": True, "health": ""} if begins and not found.answers else {}
    named = service.named(readers, probes=not begins)
    return trouble_of(found.model_copy(update={**silent, "named": named}), _BOUNDS)


def _examine(service: Watched, readers: Sequence[LogReader]) -> ServiceEvidence:
    return service.kind.examine().model_copy(update={"named": service.named(readers)})


def _offsets(readers: Sequence[LogReader]) -> dict[str, int]:
    return {reader.sign.key: reader.since for reader in readers}


async def _in_thread(ctx: Context, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(ctx.lifespan, call)
