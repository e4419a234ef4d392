"""The control plane: a process that keeps workflows and durable tasks until they end, and publishes their tasks.

`program` puts the process together. The entry point `coditect.control_plane` names this package: the command line uses
its `main`, `back_up` and `restore`, and `TestFleet` enters `running_dispatcher`. Each name is imported when it is first
used: ``python -m dispatcher`` imports this package before it can handle a signal.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from coditect.errors import missing_extra

if TYPE_CHECKING:
    from dispatcher.backup import back_up, restore
    from dispatcher.program import main, running_dispatcher

if any(find_spec(name) is None for name in ("jmespath", "rq", "yaml")):
    raise missing_extra("dispatcher")

_HOMES = {
    "back_up": "dispatcher.backup",
    "main": "dispatcher.program",
    "restore": "dispatcher.backup",
    "running_dispatcher": "dispatcher.program",
}

__all__ = ["back_up", "main", "restore", "running_dispatcher"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
