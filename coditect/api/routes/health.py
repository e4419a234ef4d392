"""The health of the API process: whether it lives, whether it can work, and its metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from coditect.api.services import Services
from coditect.errors import BrokerUnavailable
from coditect.telemetry.exporter import exposition
from coditect.wire import routing

router = APIRouter(tags=["health"])

READY_WITHIN_SECONDS = 2.0
FIX = "wait: it is started again by itself; the log says why it ended"


@router.get("/livez")
async def live() -> dict[str, str]:
    """Tell that the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(services: Services) -> dict[str, str]:
    """Tell whether the broker answers and every loop that the process needs runs; 503 when not."""
    if reason := services.health.why_not():
        raise BrokerUnavailable("A loop of the broker's connection is down", reason=reason, fix=FIX)
    try:
        async with asyncio.timeout(READY_WITHIN_SECONDS):
            await services.broker.stats(routing.CONTROL_QUEUE)
    except TimeoutError as error:
        raise BrokerUnavailable("The broker does not answer", within_seconds=READY_WITHIN_SECONDS) from error
    return {"status": "ok"}


@router.get("/metrics", include_in_schema=False)
async def metrics(services: Services) -> Response:
    """Return the metrics of the process in Prometheus' text format."""
    body, kind = exposition(services.metrics.declared, services.metrics.samples())
    return Response(body, headers={"content-type": kind})
