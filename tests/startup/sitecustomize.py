"""On the path of every Python that a test starts: it imports less, and a block of the documentation stays here.

It stands in for a `sitecustomize` of the machine: no test is to depend on one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_NAMES = frozenset({"", "localhost", "ip6-localhost"})


class _RedisWithoutMetrics:
    """Where OpenTelemetry is installed, redis-py imports its SDK for metrics of its own, a tenth of a start."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Refuse OpenTelemetry to redis-py alone."""
        if name.startswith("opentelemetry"):
            importer = sys._getframe(1)
            while importer.f_back and "importlib" in importer.f_globals.get("__name__", ""):
                importer = importer.f_back
            if importer.f_globals.get("__name__", "").startswith("redis."):
                raise ModuleNotFoundError(f"No module named {name!r} for redis", name=name)


def _is_here(host: object) -> bool:
    text = host.decode() if isinstance(host, bytes) else str(host or "")
    if text in _NAMES:
        return True
    import ipaddress  # noqa: PLC0415 - most that starts looks for no address

    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_the_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo" and not _is_here(arguments[0]):
        raise PermissionError(f"A block of the documentation looks up {arguments[0]!r}")
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, tuple) and not _is_here(address[0]):
            raise PermissionError(f"A block of the documentation connects to {address!r}")


sys.meta_path.insert(0, _RedisWithoutMetrics)
if "TESTS_OF_THE_DOCUMENTATION" in os.environ:
    sys.addaudithook(_refuse_the_network)
