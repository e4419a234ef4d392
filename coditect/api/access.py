"""The roles of the API's callers, and the port that decides which role the sender of a request has.

viewer < operator < approver < admin: each role may do what the one before it may.

API keys are random secrets, of which a file keeps the hashes, with the name and the role of each caller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from errno import EISDIR
from hmac import compare_digest
from os import strerror
from pathlib import Path
from secrets import token_urlsafe
from typing import Protocol

from starlette.requests import HTTPConnection

from coditect.errors import InputError, NotFound, SetupError
from coditect.model import arguments
from coditect.settings.settings import is_own, write_own


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


PREFIX = "coditect_"
"""How every key begins, so that a scanner for secrets finds one that was published by mistake."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as the file keeps it: its caller's name and role, the hash of its secret, and when it was made."""

    name: str
    role: Role
    sha256: str
    made_at: str
    """When it was made, ISO 8601."""


class KeyFile:
    """The file of API keys; a change of the file counts from the next request on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: tuple[int, int, int] | None = None
        self._keys: Mapping[str, ApiKey] = {}

    def keys(self) -> Mapping[str, ApiKey]:
        """Return the keys by their hashes; none without a file.

        Raises:
            SetupError: when users other than this one and root may write the file, or it is no file of keys.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unreadable(error) from error
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen != self._read:
            self._keys, self._read = self._load(), seen
        return self._keys

    async def caller_of(self, token: str) -> Caller | None:
        """Return the caller to whom an API key belongs; None for any other token."""
        if not token.startswith(PREFIX):
            return None
        key = self.keys().get(_hash(token))
        return None if key is None else Caller(key.name, key.role)

    def create(self, name: str, role: Role, *, made_at: str) -> str:
        """Make a key, keep its hash, and return the key, which is not kept.

        Raises:
            InputError: when there is a key of the name, or the name is empty or longer than 100 characters.
        """
        arguments.text("name", name, shortest=1, longest=100)
        keys = dict(self.keys())
        if any(one.name == name for one in keys.values()):
            fix = f"choose another name, or first: coditect api key revoke {name}"
            raise InputError("There is a key of this name", name=name, fix=fix)
        secret = PREFIX + token_urlsafe(32)
        key = ApiKey(name, role, _hash(secret), made_at)
        self._write([*keys.values(), key])
        return secret

    def revoke(self, name: str) -> None:
        """Remove the key of a name; it is refused from the next request on.

        Raises:
            NotFound: when there is no such key.
        """
        keys = list(self.keys().values())
        left = [one for one in keys if one.name != name]
        if len(left) == len(keys):
            raise NotFound("There is no key of this name", name=name, fix="coditect api key list")
        self._write(left)

    def _load(self) -> dict[str, ApiKey]:
        if self._path.is_dir():
            raise self._unreadable(IsADirectoryError(EISDIR, strerror(EISDIR)))
        if not is_own(self._path, or_roots=True):
            fix = f"chmod 600 {self._path}, and own it"
            raise SetupError("Others may write the file of API keys", path=str(self._path), fix=fix)
        try:
            rows = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines() if line.strip()]
            keys = [ApiKey(row["name"], Role(row["role"]), row["sha256"], row["made_at"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            fix = "move it away, and make new keys: coditect api key create"
            raise SetupError("This is no file of API keys", path=str(self._path), fix=fix) from error
        except OSError as error:
            raise self._unreadable(error) from error
        return {one.sha256: one for one in keys}

    def _unreadable(self, error: OSError) -> SetupError:
        fix = "CODITECT_API_KEYS=FILE: a file that this user may read, or one that is not there yet"
        return SetupError("The file of API keys cannot be read", path=str(self._path), reason=error.strerror, fix=fix)

    def _write(self, keys: list[ApiKey]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_own(self._path, "".join(json.dumps(asdict(one)) + "\n" for one in keys))


class AdminKey:
    """The one key in the settings of an API, such as that of `coditect up`; its caller is `local`, an admin."""

    def __init__(self, key: str) -> None:
        self._hash = _hash(key)

    async def caller_of(self, token: str) -> Caller | None:
        """Return the caller `local` for the key; None for any other token."""
        return LOCAL if compare_digest(_hash(token), self._hash) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
