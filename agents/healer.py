"""Two agents that keep services well: one watches them and tells when one is not, one examines, mends and verifies.

They work on the services of their own machine, in folders as `agents/deployment/service.py` draws them. The event
`service.unwell` starts `examples/patterns/self_healing.yaml`; `agents/doctors.py` has who diagnoses.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agents.deployment.service import Service
from agents.healing.causes import Cause
from agents.healing.evidence import Bounds, ServiceEvidence, examine, glance, trouble_of, watched_below
from agents.healing.remedies import remedy
from agents.tools.confined import confined
from coditect import Agent, Context, PlainContext, Retry
from coditect.errors import InputError

detector = Agent("detector", version="1.0.0", slots=4, tags=frozenset({"operations"}))
healer = Agent("healer", version="1.0.0", slots=16, tags=frozenset({"operations"}))

UNWELL = "service.unwell"
"""The type of the event that tells of a service that is not well; its data has `service` and `trouble`."""
SPACE = "healing"
"""The shared state with an object for each service: `open` while a workflow heals it, and the last such `task`."""
_BOUNDS = Bounds()
_LOOK_SECONDS = 0.25
_TWICE = 2
"""A service is unwell, and well again, when two looks in a row say so."""
_AGAIN_SECONDS = 10.0
_PATIENT = Retry(max_attempts=5, first="200ms", cap="5s")


class _HealerRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WatchRequest(_HealerRequest):
    """A request to watch the services below a folder for a time."""

    folder: str = Field(min_length=1, description="a folder of services on the agent's machine")
    hours: float = Field(24, gt=0, le=160, description="how long")


class ServiceRequest(_HealerRequest):
    """A request about one service, in one round of its healing."""

    service: str = Field(min_length=1, description="the folder of a service on the agent's machine")
    round: int = Field(1, ge=1)


class FixRequest(ServiceRequest):
    """A request to apply the remedy for one cause to a service."""

    cause: Cause


class Fixed(BaseModel):
    """The report of a remedy: for which cause, and what was done."""

    cause: Cause
    done: str


class VerifyRequest(ServiceRequest):
    """A request to wait until a service is well."""

    within_seconds: float = Field(5.0, gt=0, le=60)


class Verified(BaseModel):
    """The end of a verification: well or not, and why not."""

    well: bool
    why: str


@dataclass(slots=True)
class _SeenService:
    """The detector's record of a service: how often in a row it was unwell, and when the event was last emitted."""

    unwell: int = 0
    told_at: float | None = None
    closed: bool = False


@detector.capability(
    "services.watch", timeout="7d", retry=Retry(max_attempts=100), description="Tells when a watched service is unwell."
)
async def watch(task: WatchRequest, ctx: Context) -> None:
    """Look at the watched services four times a second, and emit `service.unwell` for each that is not well.

    The event is emitted again every ten seconds until a workflow has taken the service up, and not while one does.
    """
    folder, seen = Path(confined(task.folder)), dict[str, _SeenService]()
    async for _ in _ticks(task.hours * 3_600):
        services = await asyncio.to_thread(watched_below, folder)
        troubles = await asyncio.gather(*(asyncio.to_thread(_trouble, service) for service in services))
        for service, trouble in zip(services, troubles, strict=True):
            if trouble is not None:
                await _tell(ctx, str(service.folder), trouble, seen)


async def _ticks(most_seconds: float) -> AsyncIterator[None]:
    end = time.monotonic() + most_seconds
    while time.monotonic() < end:
        yield
        await asyncio.sleep(_LOOK_SECONDS)


def _trouble(service: Service) -> str | None:
    """Return what one look shows to be wrong with a service, empty if nothing; None when the service is removed."""
    try:
        return trouble_of(glance(service), _BOUNDS)
    except (InputError, FileNotFoundError):
        return None


async def _tell(ctx: Context, service: str, trouble: str, seen: dict[str, _SeenService]) -> None:
    one = seen.setdefault(service, _SeenService())
    if not trouble:
        if not one.closed and await _taken(ctx, service):
            await ctx.space(SPACE).merge(service, {"open": False})  # a person mended it
        seen[service] = _SeenService(closed=True)
        return
    one.unwell, one.closed = one.unwell + 1, False
    due = one.told_at is None or time.monotonic() - one.told_at >= _AGAIN_SECONDS
    if one.unwell >= _TWICE and due and not await _taken(ctx, service):
        await ctx.emit(UNWELL, subject=service, service=service, trouble=trouble)
        one.told_at = time.monotonic()


async def _taken(ctx: Context, service: str) -> bool:
    record: dict[str, Any] | None = await ctx.space(SPACE).get(service)
    return record is not None and bool(record["open"])


@healer.capability("service.examine", timeout="1m", retry=_PATIENT, description="Gathers the evidence about a service.")
async def examine_service(task: ServiceRequest, ctx: Context) -> ServiceEvidence:
    """Return the evidence about a service, and note that its healing is under way. Changes nothing of the service."""
    service = Service(Path(confined(task.service)))
    if task.round == 1:
        await ctx.space(SPACE).put(task.service, {"open": True, "task": ctx.task_id})
    return await asyncio.to_thread(examine, service)


@healer.capability("service.fix", timeout="1m", retry=_PATIENT, description="Mends a service of a cause.")
def fix(task: FixRequest, ctx: PlainContext) -> Fixed:
    """Apply the remedy for a cause to a service that is not well; one that is well meanwhile is left alone.

    Only one fix or release of a service goes on at once, also when a fix is canceled amid its remedy. A fix that is
    executed again after a fault looks again, and finds what the first execution did.

    Raises:
        LockLost: retryable; the fix took too long.
    """
    service = Service(Path(confined(task.service)))
    with ctx.lock(f"service:{service.folder.resolve()}"):  # as a release does
        if not trouble_of(examine(service), _BOUNDS):
            return Fixed(cause=task.cause, done="nothing: it is well")
        return Fixed(cause=task.cause, done=remedy(service, task.cause))


@healer.capability("service.verify", timeout="2m", retry=_PATIENT, description="Waits until a service is well.")
async def verify(task: VerifyRequest, ctx: Context) -> Verified:
    """Return that the service is well once two looks in a row say so, or what is wrong when the time is over.

    A service without a process is not waited for: nothing starts it by itself.
    """
    service, well, end = Service(Path(confined(task.service))), 0, time.monotonic() + task.within_seconds
    while True:
        evidence = await asyncio.to_thread(examine, service)
        why = trouble_of(evidence, _BOUNDS)
        well = 0 if why else well + 1
        if well == _TWICE or (why and (not evidence.running or time.monotonic() >= end)):
            break
        await asyncio.sleep(_LOOK_SECONDS)
    if not why:
        await ctx.space(SPACE).merge(task.service, {"open": False})
    return Verified(well=not why, why=why)
