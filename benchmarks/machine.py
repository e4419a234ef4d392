"""The machine and the versions to which the figures belong."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from coditect.local.probe import broker_version, redis_version

PACKAGES = ("coditect", "aiormq", "aio-pika", "pamqp", "pydantic", "redis", "uvloop", "orjson", "hiredis")
CPU_FACTS = Path("/proc/cpuinfo")


async def describe(amqp_url: str, redis_url: str) -> dict[str, str]:
    """Return processor, memory, system and every version that matters to the figures; no name or path."""
    packages = ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)
    return {
        "machine": f"{os.cpu_count()} x {_processor()}, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "load before the run": f"{os.getloadavg()[0]:.2f}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "servers": f"RabbitMQ {await broker_version(amqp_url)}, Redis {await redis_version(redis_url)}",
        "packages": packages,
    }


def version_of(package: str) -> str:
    """Return the installed version of a package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    if CPU_FACTS.exists():
        for line in CPU_FACTS.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
