"""The control plane: a process beside the agents, one file per verb.

`program` puts the process together. The entry point `coditect.control_plane` names this package: of it the command
line runs `main`, and `TestFleet` enters `running_dispatcher`.
"""

from dispatcher.program import main, running_dispatcher

__all__ = ["main", "running_dispatcher"]
