"""The network faults between a process and a server, and the simulated network path to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from inspect import iscoroutinefunction
from random import Random
from typing import Any

from chaos.faults.schedule import BOTH_WAYS, DEAF, MUTE, SLOW
from coditect.aio.network import NetworkPath, Way
from coditect.errors import CoditectError
from coditect.registry.memory import REGISTRY_CALL_SECONDS

SLOW_SECONDS = (0.02, 1.2)
"""The range of the longest delay of a message on a slow path: from below to above a call's timeout."""


class RemotePort:
    """A wrapper of an object with calls to Redis, whose calls and answers travel over a simulated network path."""

    def __init__(self, port: object, path: NetworkPath, unavailable: Callable[..., CoditectError]) -> None:
        """Route the object's calls over a path; `unavailable` makes the error of a call without an answer in time."""
        self._port = port
        self._path = path
        self._unavailable = unavailable

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        return partial(self._call, found) if iscoroutinefunction(found) else found

    async def _call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self._path.is_open:
            return await call(*arguments, **options)
        try:
            async with asyncio.timeout(REGISTRY_CALL_SECONDS):
                await self._path.travel(Way.TO_SERVER)
                answer = await call(*arguments, **options)
                await self._path.travel(Way.TO_CLIENT)
        except TimeoutError as error:
            raise self._unavailable("Redis did not answer", reason="parted", step=call.__name__) from error
        return answer


def _slow(path: NetworkPath, random: Random) -> None:
    most, each = random.uniform(*SLOW_SECONDS), Random(random.getrandbits(32))  # noqa: S311 - it is to be foreseen
    path.slow(lambda: each.uniform(0.0, most))


MANNERS: Mapping[str, Callable[[NetworkPath, Random], None]] = {
    BOTH_WAYS: lambda path, _: path.cut_off(),
    MUTE: lambda path, _: path.cut_off(Way.TO_SERVER),
    DEAF: lambda path, _: path.cut_off(Way.TO_CLIENT),
    SLOW: _slow,
}
"""The functions that cut off or slow a process's path to a server, by the manner of the fault."""
