"""The errors of a fleet under test."""

from __future__ import annotations

from coditect.errors import CoditectError


class FleetStuck(CoditectError):
    """The error of a test that waits in vain, because nothing in the fleet can bring about what it awaits."""


class FleetCrashed(ExceptionGroup[Exception]):
    """The group of all exceptions that the fleet's background work raised during the test."""
