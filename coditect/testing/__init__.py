"""An in-process fleet for tests: seeded, with virtual time, and with processes that a test can kill and pause.

`TestFleet` runs the real runtime, client and control plane over the in-memory twins of broker and registry.

``fleet``          the `TestFleet`: its processes, faults to inject, and views of its state
``process``        one simulated process
``processes``      all simulated processes, and the actions on them: start, kill, pause, restart, drain
``schedule``       the order, by the seed, of the processes' callbacks on one event loop
``virtual_clock``  the loop's virtual time: it stands still while there is work, and jumps while there is none
``seeded``         time of day, ids and random numbers from a seed
``crashes``        the errors of background work
``servers``        a plugin of pytest: a real RabbitMQ and Redis for a run, as private processes or in containers
``containers``     those in containers, by testcontainers
"""

from coditect.testing.errors import FleetCrashed, FleetStuck
from coditect.testing.fleet import TestFleet
from coditect.testing.process import State, VirtualProcess

__all__ = ["FleetCrashed", "FleetStuck", "State", "TestFleet", "VirtualProcess"]
