"""Large values in a folder: verified, bounded, and never anywhere else."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from traceback import format_exception

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.blobs import FolderBlobs, NoBlobs, fetched, open_blobs, whole, whole_value
from coditect.errors import BlobUnavailable, ClaimBroken, InvalidTask, SetupError, TooLarge
from coditect.model.result import Outcome, Status
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import ClaimCheck, as_claim, check_claims, claim_check_of, has_claims

VALUE = b'"' + b"x" * 2_000_000 + b'"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder: Path) -> FolderBlobs:
    opened = open_blobs(f"file://{folder}", most_bytes=3_000_000)
    assert isinstance(opened, FolderBlobs)
    return opened


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_value_is_one_file_named_by_its_hash_however_often_it_is_put(blobs: FolderBlobs, folder: Path) -> None:
    claim = await blobs.put(VALUE)
    again = await blobs.put(VALUE)

    assert again == claim == claim_check_of(VALUE)
    assert files(folder) == [folder / claim.sha256[:2] / claim.sha256]
    assert as_claim(loads(claim.document)) == claim
    assert await blobs.get(claim) == VALUE


async def test_any_file_system_of_fsspec_will_do() -> None:
    opened = open_blobs("memory://large/values", most_bytes=3_000_000)

    claim = await opened.put(VALUE)

    assert await opened.get(claim) == VALUE


@pytest.mark.parametrize("other", [b"", VALUE[:-1], VALUE + b" ", VALUE.replace(b"x", b"y", 1)])
async def test_what_is_not_the_meant_value_is_not_given(blobs: FolderBlobs, folder: Path, other: bytes) -> None:
    claim = await blobs.put(VALUE)
    (folder / claim.name).write_bytes(other)

    with pytest.raises(ClaimBroken, match="not the one"):
        await blobs.get(claim)


async def test_missing_value_is_told_apart_from_a_missing_folder_s_trouble(blobs: FolderBlobs, folder: Path) -> None:
    with pytest.raises(ClaimBroken, match="not where its claim says"):
        await blobs.get(claim_check_of(b"never put"))

    folder.write_text("in the way")
    with pytest.raises(BlobUnavailable) as caught:
        await blobs.put(VALUE)
    assert caught.value.retryable


async def test_size_is_bounded_both_ways_and_the_setting_named(blobs: FolderBlobs, folder: Path) -> None:
    with pytest.raises(TooLarge, match="CODITECT_BLOB_MAX_BYTES"):
        await blobs.put(b"x" * 3_000_001)
    with pytest.raises(TooLarge, match="CODITECT_BLOB_MAX_BYTES"):
        await blobs.get(ClaimCheck("a" * 64, 3_000_001))

    assert not folder.exists()


async def test_without_a_place_the_setting_is_named() -> None:
    for refused in (NoBlobs().put(VALUE), NoBlobs().get(claim_check_of(VALUE))):
        with pytest.raises(TooLarge, match="CODITECT_BLOB_URL") as caught:
            await refused
        assert not caught.value.retryable


async def test_place_that_hangs_is_unavailable(blobs: FolderBlobs) -> None:
    gate = threading.Event()

    class Hanging:
        def cat_file(self, *_: object, **__: object) -> bytes:
            gate.wait(10)
            return b""

    try:
        with pytest.raises(BlobUnavailable, match="did not answer in time"):
            await replace(blobs, files=Hanging(), transfer_seconds=0.05).get(claim_check_of(VALUE))
    finally:
        gate.set()


def test_place_that_fsspec_cannot_reach_is_refused_when_it_is_opened() -> None:
    with pytest.raises(SetupError, match="CODITECT_BLOB_URL"):
        open_blobs("nosuchprotocol://bucket/folder", most_bytes=1)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://user:s3cretPW#x@127.0.0.1:1/y", "ValueError"),
        ("ftp://user:s3cretPW@127.0.0.1:1/y", "ConnectionRefusedError"),
        ("ftp://127.0.0.1:1/y", "refused"),
    ],
)
def test_url_that_cannot_be_opened_is_told_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(SetupError, match="CODITECT_BLOB_URL") as refused:
        open_blobs(url, most_bytes=1)

    assert reason in str(refused.value.facts["reason"])
    assert "s3cret" not in "".join(format_exception(refused.value))


async def test_claim_is_redeemed_as_the_whole_and_anywhere_inside(blobs: FolderBlobs) -> None:
    claim = await blobs.put(VALUE)
    document, text = loads(claim.document), loads(VALUE)

    assert await whole(blobs, claim.document) == VALUE
    assert await whole_value(blobs, {"a": [1, {"b": document}], "c": None}) == {"a": [1, {"b": text}], "c": None}
    outcome = Outcome(Status.COMPLETED, claim.document, None, None, claims=True)
    assert await fetched(blobs, outcome) == Outcome(Status.COMPLETED, VALUE, None, None)


async def test_value_without_claims_is_asked_for_nowhere() -> None:
    value = {"$claim": {"sha256": "short", "bytes": 1}, "a": [{"$claim": 1}]}

    assert await whole_value(NoBlobs(), value) is value


async def test_many_claims_together_are_bounded_too(blobs: FolderBlobs) -> None:
    claim = await blobs.put(VALUE)
    document = loads(claim.document)

    with pytest.raises(TooLarge, match="CODITECT_BLOB_MAX_BYTES"):
        await whole_value(blobs, [document, document])


@given(st.one_of(st.text(), st.from_regex(r"\A[0-9a-f./]{60,68}\Z"), st.integers(0, 9), st.none()))
def test_claim_names_a_hash_or_is_none(digest: object) -> None:
    claim = as_claim({"$claim": {"sha256": digest, "bytes": 1}})

    if isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
        assert claim is not None
        assert claim.name == f"{digest[:2]}/{digest}"
    else:
        assert claim is None


@pytest.mark.parametrize("size", [-1, 2**40 + 1, True, 1.5, "1", None])
def test_claim_says_its_size_or_is_none(size: object) -> None:
    assert as_claim({"$claim": {"sha256": "a" * 64, "bytes": size}}) is None


@pytest.mark.parametrize(
    "value",
    [
        {"sha256": "a" * 64, "bytes": 1},
        {"$claim": {"sha256": "a" * 64, "bytes": 1, "path": "x"}},
        {"$claim": {"sha256": "a" * 64, "bytes": 1}, "more": 1},
        {"$claim": {"sha256": "../../../../etc/passwd", "bytes": 1}},
        "$claim",
        [],
    ],
)
def test_what_only_looks_like_a_claim_is_a_value(value: object) -> None:
    assert not has_claims(dumps(value))
    assert not has_claims(dumps({"in": [value]}))
    with pytest.raises(InvalidTask, match="no claim"):
        check_claims(dumps(value))


async def test_folder_that_hangs_takes_nobody_elses_threads(blobs: FolderBlobs) -> None:
    release = threading.Event()

    class Hanging:
        def cat_file(self, *_: object, **__: object) -> bytes:
            release.wait(30)
            return b""

    hanging = replace(blobs, files=Hanging(), transfer_seconds=0.5)
    waiting = [asyncio.create_task(hanging.get(claim_check_of(b"%d" % number))) for number in range(100)]
    try:
        await asyncio.wait_for(asyncio.to_thread(len, ""), 10)
        for one in waiting:
            with pytest.raises(BlobUnavailable):
                await one
    finally:
        release.set()
