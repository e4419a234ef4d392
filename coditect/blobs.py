"""The store for large values, in a folder that every process can reach (EIP's Claim Check).

A message carries a blob reference (`wire.blob_ref`) in place of such a value. The folder is an fsspec URL,
`CODITECT_BLOB_URL`: `file:///srv/blobs`, `s3://bucket/folder`, `gs://...`; needs the extra `blob`, and for most URLs
fsspec's own library for it. Files are written before the message that needs them, never changed, and never removed by
Coditect: their age decides.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn, Protocol, TypeVar

from coditect.errors import BlobUnavailable, ClaimBroken, SetupError, TooLarge, install_command
from coditect.model.result import Outcome
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import MAX_BODY_BYTES, ClaimCheck, as_claim, claim_check_of, claims_in, redeemed

T = TypeVar("T")

TRANSFER_SECONDS = 60.0
"""The longest time to write or read one large value."""
MAX_TRANSFERS = 16
"""The largest number of concurrent transfers of one process."""
_SET_IT = "set CODITECT_BLOB_URL everywhere to a folder that all can reach, or pass a reference to where it lies"

_CORRECT_IT = "correct CODITECT_BLOB_URL: its protocol, host and port, with user and password percent-encoded"


class Blobs(Protocol):
    """The port of the store for large values, which are over the inline limit of a message."""

    def check(self, size_bytes: int) -> None:
        """Raise TooLarge if a large value of the given size may not be read into memory.

        Raises:
            TooLarge: when the value is over the limit for large values.
        """

    async def put(self, body: bytes) -> ClaimCheck:
        """Store a large value durably, and return its blob reference; idempotent.

        Raises:
            TooLarge: when the value is over the limit for large values.
            BlobUnavailable: when the store did not answer; retryable.
        """

    async def get(self, claim: ClaimCheck) -> bytes:
        """Fetch the large value of a blob reference, and verify its hash and size.

        Raises:
            ClaimBroken: when the value is missing or differs.
            TooLarge: when the value is over the limit for large values.
            BlobUnavailable: when the store did not answer; retryable.
        """


@dataclass(frozen=True, slots=True)
class NoBlobs:
    """The adapter without a store for large values: every value over the inline limit is refused."""

    def check(self, size_bytes: int) -> NoReturn:
        """Refuse a large value, because no store is set up.

        Raises:
            TooLarge: always.
        """
        raise TooLarge("Where this value over the inline limit lies is not known here", bytes=size_bytes, fix=_SET_IT)

    async def put(self, body: bytes) -> ClaimCheck:
        """Refuse to store a large value.

        Raises:
            TooLarge: always.
        """
        raise TooLarge("The body is over the inline limit", bytes=len(body), limit=MAX_BODY_BYTES, fix=_SET_IT)

    async def get(self, claim: ClaimCheck) -> bytes:
        """Refuse to fetch a large value.

        Raises:
            TooLarge: always.
        """
        self.check(claim.size_bytes)


NO_BLOBS = NoBlobs()


@dataclass(frozen=True, slots=True)
class FolderBlobs:
    """A store for large values in a folder of any fsspec file system, accessed from threads."""

    files: Any
    folder: str
    most_bytes: int
    durable: bool = False
    """Whether the folder is on this machine, so that files are synced and renamed into place."""
    transfer_seconds: float = TRANSFER_SECONDS
    threads: ThreadPoolExecutor = field(
        default_factory=partial(ThreadPoolExecutor, MAX_TRANSFERS, "blobs"), compare=False, repr=False
    )
    """The store's own threads, so that a hanging folder takes no thread from the event loop's pool."""

    async def put(self, body: bytes) -> ClaimCheck:
        """Store a large value in a file named by its hash, and return its blob reference; idempotent."""
        self.check(len(body))
        return await self._transferred(lambda: self._write(body))

    async def get(self, claim: ClaimCheck) -> bytes:
        """Fetch the large value of a blob reference from its file, and verify its hash and size."""
        self.check(claim.size_bytes)
        return await self._transferred(lambda: self._read(claim))

    def check(self, size_bytes: int) -> None:
        """Raise TooLarge if a large value is over the store's limit (`CODITECT_BLOB_MAX_BYTES`).

        Raises:
            TooLarge: when the value is larger.
        """
        if size_bytes > self.most_bytes:
            raise TooLarge(
                "The value is over the limit for large values",
                bytes=size_bytes,
                limit=self.most_bytes,
                fix="pass a reference to where it lies, or raise CODITECT_BLOB_MAX_BYTES everywhere",
            )

    def _write(self, body: bytes) -> ClaimCheck:
        claim = claim_check_of(body)
        path = self._path(claim)
        if self.durable:
            _write_in_place(Path(path), body)
        else:
            self.files.pipe_file(path, body)
        return claim

    def _read(self, claim: ClaimCheck) -> bytes:
        try:
            body: bytes = self.files.cat_file(self._path(claim), start=0, end=claim.size_bytes + 1)
        except FileNotFoundError as error:
            raise ClaimBroken(
                "The value is not where its claim says",
                sha256=claim.sha256,
                fix="keep what lies in CODITECT_BLOB_URL longer than any task or dead letter",
            ) from error
        if claim_check_of(body) != claim:
            raise ClaimBroken("The value is not the one that its claim means", sha256=claim.sha256)
        return body

    def _path(self, claim: ClaimCheck) -> str:
        return f"{self.folder}/{claim.name}"

    async def _transferred(self, transfer: Callable[[], T]) -> T:
        """Run a transfer in a thread and return its result; raise BlobUnavailable when it fails or takes too long.

        ClaimBroken is raised as it is. A hanging thread is left behind.
        """
        try:
            async with asyncio.timeout(self.transfer_seconds):
                return await asyncio.get_running_loop().run_in_executor(self.threads, transfer)
        except ClaimBroken:
            raise
        except Exception as error:  # a file system of any vendor raises what it likes
            late = isinstance(error, TimeoutError)
            raise BlobUnavailable(
                "Where large values lie did not answer in time" if late else "Where large values lie refused",
                reason=f"{type(error).__name__}: {error}"[:300],
                fix="see that every process may read and write there",
            ) from error


def open_blobs(url: str | None, *, most_bytes: int) -> Blobs:
    """Return the store for large values at a URL; without a URL, one that refuses every value.

    fsspec connects to some kinds of servers here already, such as FTP.

    Raises:
        SetupError: when fsspec, or what it needs for this URL, is not installed, or fsspec cannot open the URL.
    """
    if url is None:
        return NO_BLOBS
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - optional: the extra `blob`
        from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415

        files, folder = url_to_fs(url)
    except Exception as error:  # noqa: BLE001 - a file system of any vendor raises what it likes
        missing = isinstance(error, ImportError)
        shown = missing or "@" not in url  # what the vendor says may hold a part of the password
        raise SetupError(
            "The place for large values cannot be used",
            variable="CODITECT_BLOB_URL",
            reason=str(error) if shown else type(error).__name__,
            fix=f"{install_command('blob')}, and what fsspec needs for this URL" if missing else _CORRECT_IT,
        ) from (error if shown else None)
    return FolderBlobs(files, folder.rstrip("/"), most_bytes, durable=isinstance(files, LocalFileSystem))


async def whole(blobs: Blobs, body: bytes) -> bytes:
    """Return a JSON document with each blob reference replaced by the value it refers to.

    Raises:
        CoditectError: any error of `Blobs.get`, and InvalidTask for invalid JSON.
    """
    value = loads(body)
    claim = as_claim(value)
    if claim is not None:
        return await blobs.get(claim)
    return dumps(await whole_value(blobs, value))


async def whole_value(blobs: Blobs, value: Any) -> Any:
    """Return a JSON value with each blob reference replaced by the large value it refers to.

    Raises:
        CoditectError: any error of `Blobs.get`, and InvalidTask for invalid JSON.
    """
    claims = [*claims_in(value)]
    if not claims:
        return value
    blobs.check(sum(claim.size_bytes for claim in claims))  # the same one ten thousand times is large, too
    return redeemed(value, {claim: loads(await blobs.get(claim)) for claim in dict.fromkeys(claims)})


async def fetched(blobs: Blobs, outcome: Outcome) -> Outcome:
    """Return a task's outcome with the blob references in its body replaced by the values they refer to.

    Raises:
        CoditectError: any error of `Blobs.get`, and InvalidTask for invalid JSON.
    """
    return replace(outcome, body=await whole(blobs, outcome.body), claims=False)


def _write_in_place(path: Path, body: bytes) -> None:
    """Write a file so that it appears in its folder only when it is complete, and is synced to disk on return."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    for folder in (path.parent, path.parent.parent):
        _sync(folder)


def _sync(folder: Path) -> None:
    """Sync a folder's entries to the disk, so that a new file survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
