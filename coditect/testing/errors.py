"""What a fleet under test says when the test itself cannot go on."""

from __future__ import annotations

from coditect.errors import CoditectError


class FleetStuck(CoditectError):
    """The test waits for something that cannot come: nothing runs, and nothing waits for time."""


class FleetCrashed(ExceptionGroup[Exception]):
    """Background work of the fleet failed during the test; the exceptions are in the group."""
