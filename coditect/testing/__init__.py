"""An in-process fleet for tests: seeded, with virtual time, and with processes that a test can kill and pause.

`TestFleet` runs the real runtime, client and control plane over the in-memory twins of broker and registry.

``fleet``         the `TestFleet`: actions on its processes, faults to inject, views, and errors of background work
``process``       the simulated processes: agents, control planes, and the processes of their suspects
``virtual_time``  the loop's virtual time, the order of the processes' callbacks by the seed, and a seeded clock
``servers``       a plugin of pytest: a real RabbitMQ and Redis for a run, as private processes or in containers
"""

from coditect.testing.fleet import FleetCrashed, FleetStuck, TestFleet
from coditect.testing.process import State, VirtualProcess

__all__ = ["FleetCrashed", "FleetStuck", "State", "TestFleet", "VirtualProcess"]
