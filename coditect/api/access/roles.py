"""The roles of the API's callers, and the port that decides which role the sender of a request has.

viewer < operator < approver < admin: each role may do what the one before it may.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from starlette.requests import HTTPConnection


class Role(StrEnum):
    """The role of a caller, the least powerful first."""

    VIEWER = "viewer"
    """Reads everything."""
    OPERATOR = "operator"
    """Submits and steers work: tasks, workflows, schedules, triggers, dead letters, locks, breakers, agents."""
    APPROVER = "approver"
    """Answers approvals."""
    ADMIN = "admin"
    """Changes what the whole fleet stands on, such as the topology."""

    def may(self, needed: Role) -> bool:
        """Tell whether a caller of this role may do what needs the role `needed`."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request: a name for the audit line, and a role."""

    name: str
    role: Role


class Access(Protocol):
    """The port that finds out who sends a request, by its credentials."""

    async def caller(self, connection: HTTPConnection) -> Caller:
        """Return the name and role of a request's sender; an API with keys refuses missing or wrong credentials.

        Raises:
            HTTPException: 401, when the request has no credentials, or wrong ones.
        """


LOCAL = Caller("local", Role.ADMIN)


class OpenAccess:
    """The access to an API without keys, which serves the loopback interface only: every caller may do everything."""

    async def caller(self, connection: HTTPConnection) -> Caller:
        """Return the caller `local`, an admin, for every request."""
        return LOCAL
