"""An in-process fleet for tests: seeded, with a virtual clock, with processes that can be killed and paused.

`TestFleet` runs the real runtime, client and control plane over the in-memory twins of broker and registry.

``fleet``      what a test holds: the fleet, its faults, what can be looked at
``member``     one simulated process
``schedule``   whose callbacks run next, and whose stand still: what makes a process of a part of the loop
``timeline``   the loop's virtual time: it stands still while there is work, and jumps while there is none
``chance``     time of day, ids and chance out of a seed
``crashes``    what went wrong in the background
"""

from coditect.testing.errors import FleetCrashed, FleetStuck
from coditect.testing.fleet import TestFleet
from coditect.testing.member import State, VirtualProcess

__all__ = ["FleetCrashed", "FleetStuck", "State", "TestFleet", "VirtualProcess"]
