"""Private servers and a supervised fleet on one machine, for `coditect up`, `down` and `doctor`.

Start reading at `up.py`; `supervisor.py` keeps programs running, `private.py` starts servers without a supervisor, for
tests and benchmarks. Linux and macOS.
"""

from coditect.local.doctor import Check, doctor
from coditect.local.errors import AlreadyUp, LocalError, MissingServer, ServerUnreachable, StartFailed
from coditect.local.private import PrivateServers, private_servers
from coditect.local.state import ChildState, Phase, UpFolder, UpState, read_state
from coditect.local.up import Program, Role, StopReport, UpPlan, down, up, up_detached

__all__ = [
    "AlreadyUp",
    "Check",
    "ChildState",
    "LocalError",
    "MissingServer",
    "Phase",
    "PrivateServers",
    "Program",
    "Role",
    "ServerUnreachable",
    "StartFailed",
    "StopReport",
    "UpFolder",
    "UpPlan",
    "UpState",
    "doctor",
    "down",
    "private_servers",
    "read_state",
    "up",
    "up_detached",
]
