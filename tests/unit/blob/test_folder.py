"""Large values in a folder: verified, bounded, and never anywhere else."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.blob import FolderBlobs, NoBlobs, carried, fetched, open_blobs
from coditect.errors import BlobUnavailable, ClaimBroken, InvalidTask, SetupError, TooLarge
from coditect.model.claim import Claim, claim_of, read_claim
from coditect.model.json import dumps
from coditect.model.result import Outcome, Status
from coditect.model.wire import MAX_BODY_BYTES

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

    assert again == claim == claim_of(VALUE)
    assert files(folder) == [folder / claim.sha256[:2] / claim.sha256]
    assert await blobs.get(read_claim(claim.document)) == VALUE


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
        await blobs.get(claim_of(b"never put"))

    folder.write_text("in the way")
    with pytest.raises(BlobUnavailable) as caught:
        await blobs.put(VALUE)
    assert caught.value.retryable


async def test_size_is_bounded_both_ways_and_the_setting_named(blobs: FolderBlobs, folder: Path) -> None:
    with pytest.raises(TooLarge, match="CODITECT_BLOB_MAX_BYTES"):
        await blobs.put(b"x" * 3_000_001)
    with pytest.raises(TooLarge, match="CODITECT_BLOB_MAX_BYTES"):
        await blobs.get(Claim("a" * 64, 3_000_001))

    assert not folder.exists()


async def test_without_a_place_the_setting_is_named() -> None:
    for refused in (NoBlobs().put(VALUE), NoBlobs().get(claim_of(VALUE))):
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
            await replace(blobs, files=Hanging(), transfer_seconds=0.05).get(claim_of(VALUE))
    finally:
        gate.set()


def test_place_that_fsspec_cannot_reach_is_refused_when_it_is_opened() -> None:
    with pytest.raises(SetupError, match="CODITECT_BLOB_URL"):
        open_blobs("nosuchprotocol://bucket/folder", most_bytes=1)


async def test_only_what_is_over_the_limit_is_put_away(blobs: FolderBlobs, folder: Path) -> None:
    small = b"x" * MAX_BODY_BYTES

    assert await carried(blobs, small) == (small, None)
    assert not folder.exists()

    document, claim = await carried(blobs, small + b"x")
    assert claim is not None
    assert read_claim(document) == claim
    outcome = Outcome(Status.COMPLETED, document, None, None, claim=claim)
    whole = await fetched(blobs, outcome)
    assert (whole.body, whole.claim) == (small + b"x", None)
    assert await fetched(blobs, whole) is whole


@given(st.one_of(st.text(), st.from_regex(r"\A[0-9a-f./]{60,68}\Z"), st.integers(0, 9), st.none()))
def test_claim_names_a_hash_or_is_none(digest: object) -> None:
    document = dumps({"sha256": digest, "bytes": 1})
    is_hash = isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")

    if is_hash:
        assert read_claim(document).name == f"{digest[:2]}/{digest}"  # type: ignore[index]
    else:
        with pytest.raises(InvalidTask):
            read_claim(document)


@pytest.mark.parametrize("size", [-1, 2**40 + 1, True, 1.5, "1", None])
def test_claim_says_its_size_or_is_none(size: object) -> None:
    with pytest.raises(InvalidTask, match="how many bytes"):
        read_claim(dumps({"sha256": "a" * 64, "bytes": size}))


@pytest.mark.parametrize("document", [b"", b"1", b"[]", b"{}", b"no json"])
def test_what_is_no_claim_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidTask):
        read_claim(document)
