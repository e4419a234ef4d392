"""The errors of a fleet under test."""

from __future__ import annotations

from coditect.errors import CoditectError


class FleetStuck(CoditectError):
    """The error of a test that waits in vain: nothing in the fleet can end the wait, or the wait lasts too long."""


class FleetCrashed(ExceptionGroup[Exception]):
    """The group of the exceptions that the fleet's background work raised and that the test did not forgive."""
