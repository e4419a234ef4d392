"""The control plane: a process that keeps workflows and durable tasks until they end, and publishes their tasks.

`program` puts the process together. The entry point `coditect.control_plane` names this package: the command line uses
its `main`, `backup` and `restore`, and `TestFleet` enters `running_dispatcher`.
"""

from importlib.util import find_spec

from coditect.errors import missing_extra

if any(find_spec(name) is None for name in ("jmespath", "rq", "yaml")):
    raise missing_extra("dispatcher")

from dispatcher.backup import backup, restore
from dispatcher.program import main, running_dispatcher

__all__ = ["backup", "main", "restore", "running_dispatcher"]
