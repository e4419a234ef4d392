"""Claim Check (EIP): values over the inline limit lie in a folder that every process can reach.

What travels is their claim (`model.claim_check`). The folder is an fsspec URL, `CODITECT_BLOB_URL`: `file:///srv/blobs`,
`s3://bucket/folder`, `gs://...`; needs the extra `blob`, and for most URLs fsspec's own library for it. Files are
written before the message that needs them, never changed, and removed by nobody here: their age decides.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn, Protocol, TypeVar

from coditect.errors import BlobUnavailable, ClaimBroken, SetupError, TooLarge
from coditect.model.result import Outcome
from coditect.wire.blob_ref import ClaimCheck, as_claim, claim_check_of, claims_in, redeemed
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import MAX_BODY_BYTES

T = TypeVar("T")

TRANSFER_SECONDS = 60.0
"""How long writing or reading one value may take."""
MOST_AT_ONCE = 16
"""Transfers of one process at a time."""
_SET_IT = "set CODITECT_BLOB_URL everywhere to a folder that all can reach, or pass a reference to where it lies"


class Blobs(Protocol):
    """Where large values lie."""

    def check(self, size_bytes: int) -> None:
        """Raises: TooLarge when that is more than anybody may have in memory."""

    async def put(self, body: bytes) -> ClaimCheck:
        """Keeps a value; when it returns the value can be fetched. The same one again is no error.

        Raises: TooLarge; BlobUnavailable, retryable.
        """

    async def get(self, claim: ClaimCheck) -> bytes:
        """The value that is meant, verified.

        Raises: ClaimBroken, TooLarge; BlobUnavailable, retryable.
        """


@dataclass(frozen=True, slots=True)
class NoBlobs:
    """Where there is no such place: what is over the inline limit is refused."""

    def check(self, size_bytes: int) -> NoReturn:
        """Raises: TooLarge."""
        raise TooLarge("Where this value over the inline limit lies is not known here", bytes=size_bytes, fix=_SET_IT)

    async def put(self, body: bytes) -> ClaimCheck:
        """Raises: TooLarge."""
        raise TooLarge("The body is over the inline limit", bytes=len(body), limit=MAX_BODY_BYTES, fix=_SET_IT)

    async def get(self, claim: ClaimCheck) -> bytes:
        """Raises: TooLarge."""
        self.check(claim.size_bytes)


NO_BLOBS = NoBlobs()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_AT_ONCE, "blobs")


@dataclass(frozen=True, slots=True)
class FolderBlobs:
    """A folder of a file system that fsspec can reach. `files` is fsspec's, which blocks: it is used in threads."""

    files: Any
    folder: str
    most_bytes: int
    durable: bool = False
    """Whether it is a folder of this machine, where a file must be synced and put in place."""
    transfer_seconds: float = TRANSFER_SECONDS
    threads: ThreadPoolExecutor = field(default_factory=_threads, compare=False, repr=False)
    """Its own: where a folder hangs, nothing else waits for a thread (a name's look-up takes one of the loop's)."""

    async def put(self, body: bytes) -> ClaimCheck:
        """See `Blobs.put`."""
        self.check(len(body))
        return await self._transferred(lambda: self._write(body))

    async def get(self, claim: ClaimCheck) -> bytes:
        """See `Blobs.get`."""
        self.check(claim.size_bytes)
        return await self._transferred(lambda: self._read(claim))

    def check(self, size_bytes: int) -> None:
        """See `Blobs.check`."""
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
        """What it gives, from a thread, within its time; a thread that hangs is left behind."""
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
    """The place that the URL names; nothing is read or written yet.

    Raises: SetupError when fsspec, or what it needs for this URL, is not installed.
    """
    if url is None:
        return NO_BLOBS
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - optional: the extra `blob`
        from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415

        files, folder = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise SetupError(
            "The place for large values cannot be used",
            variable="CODITECT_BLOB_URL",
            reason=str(error),
            fix="pip install 'coditect[blob]', and what fsspec needs for this URL",
        ) from error
    return FolderBlobs(files, folder.rstrip("/"), most_bytes, durable=isinstance(files, LocalFileSystem))


async def whole(blobs: Blobs, body: bytes) -> bytes:
    """The JSON document with what its claims stand for. Raises: what `Blobs.get` raises; InvalidTask."""
    value = loads(body)
    claim = as_claim(value)
    if claim is not None:
        return await blobs.get(claim)
    return dumps(await whole_value(blobs, value))


async def whole_value(blobs: Blobs, value: Any) -> Any:
    """The JSON value with what its claims stand for; the value itself where it has none. Raises: as `whole`."""
    claims = [*claims_in(value)]
    if not claims:
        return value
    blobs.check(sum(claim.size_bytes for claim in claims))  # the same one ten thousand times is large, too
    return redeemed(value, {claim: loads(await blobs.get(claim)) for claim in dict.fromkeys(claims)})


async def fetched(blobs: Blobs, outcome: Outcome) -> Outcome:
    """The outcome with its value. Raises: as `whole`."""
    return replace(outcome, body=await whole(blobs, outcome.body), claims=False)


def _write_in_place(path: Path, body: bytes) -> None:
    """The file appears whole, and is on the disk when this returns."""
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
    """What was put into the folder stays there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
