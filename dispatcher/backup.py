"""The backup and restore of the control plane's SQLite store, for the command `coditect dispatcher`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from coditect.aio.loop import run_loop
from coditect.errors import SetupError
from coditect.settings.settings import Settings
from dispatcher.ledger.ownership import incarnation
from dispatcher.store.errors import StoreMisconfigured
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.sqlite.backup import copy, replacing

log = logging.getLogger(__name__)


def back_up(settings: Settings, target: Path) -> None:
    """Copy the SQLite store that the settings name into a new file, while a dispatcher goes on using the store.

    The copy is marked as one, so it may also be copied into the store's place by hand.

    Raises:
        SetupError: when the store is no SQLite file.
        StoreMisconfigured: when a file cannot be read or written, or is no store.
        StoreFailed: when the store is damaged.
    """
    with _file_errors():
        copy(_file_of(settings), target)
        _mark(target)


def restore(settings: Settings, source: Path) -> Path | None:
    """Replace the store that the settings name by a backup file; return the path of the former file, if any.

    Raises:
        StoreLocked: while a dispatcher owns the store.
        SetupError: when the store is no SQLite file.
        StoreMisconfigured: when a file cannot be read or written, or is no store.
        StoreFailed: when the copy is damaged.
    """
    store = _file_of(settings)
    kept = store.with_name(f"{store.name}.before-{datetime.now():%Y%m%d-%H%M%S}")
    with _file_errors():
        had_one = store.exists()
        with replacing(store, lambda _: kept) as filled:
            copy(source, filled)
            _mark(filled)
    return kept if had_one else None


@contextmanager
def _file_errors() -> Iterator[None]:
    """Convert an OSError inside the `with` block to StoreMisconfigured, with the path of the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreMisconfigured("A file cannot be read or written", path=error.filename, reason=reason) from error


def _mark(path: Path) -> None:
    async def mark() -> None:
        async with SqliteDatabase(path) as database:
            now_ms = round(time.time() * 1000)
            await database.run(lambda tr: incarnation.restore(tr, now_ms))

    run_loop(mark())
    path.with_name(path.name + ".lock").unlink(missing_ok=True)


def _file_of(settings: Settings) -> Path:
    kind, _, place = settings.store_url.partition(":")
    if kind != "sqlite" or not place:
        fix = "FoundationDB has tools of its own: fdbbackup and fdbrestore"
        raise SetupError("Only a SQLite store is backed up here", given=settings.store_url, fix=fix)
    return Path(place)
