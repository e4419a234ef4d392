"""What can go wrong in the store, ordered by what the caller can do; numbers are FoundationDB's own.

::

    CoditectError
    ├── Retryable
    │   ├── RetriedByRun              `Database.run` does it again itself; never reaches its caller
    │   │   ├── TransactionConflict       1020  a key that was read has changed; nothing was written
    │   │   ├── TransactionTooOld         1007  open for longer than 5 s; nothing was written
    │   │   └── CommitUnknown             1021  it was written, or it was not
    │   ├── TransactionTimedOut       1031  the time of `run` is up; the outcome is unknown
    │   └── StoreUnavailable          no answer, or closed; what was in flight may have been written
    │       └── StoreLocked           SQLite: another process owns or holds the file; nothing was written
    ├── InputError
    │   └── BeyondLimit               the function asks for what no backend does
    │       ├── TransactionTooLarge   2101  over 10 MB
    │       ├── KeyTooLarge           2102  over 10 kB
    │       ├── ValueTooLarge         2103  over 100 kB
    │       ├── KeyOutsideRange       2004  a key from ``\\xff`` on
    │       ├── InvertedRange         2005  the begin is behind the end
    │       └── Unreadable            1036  reads what gets its key only by the commit
    ├── SetupError
    │   └── StoreMisconfigured        no library, no cluster file, not a store, a newer schema
    └── StoreFailed                   disk full, I/O error, damaged file: end the process
"""

from __future__ import annotations

from coditect.errors import CoditectError, InputError, Retryable, SetupError


class RetriedByRun(Retryable):
    """`Database.run` repeats the transaction function; a caller of `run` never sees it."""


class TransactionConflict(RetriedByRun):
    """Something that the transaction read was changed by another before it committed. Nothing was written."""


class TransactionTooOld(RetriedByRun):
    """The transaction was open for longer than `limits.TRANSACTION_SECONDS`. Nothing was written."""


class CommitUnknown(RetriedByRun):
    """The answer to the commit was lost: everything was written or nothing, and nobody can say which."""


class TransactionTimedOut(Retryable):
    """The time of `run` is up. Everything was written or nothing: call again, for the function is idempotent."""


class StoreUnavailable(Retryable):
    """The store does not answer or is closed. What was in flight was written whole or not at all."""


class StoreLocked(StoreUnavailable):
    """Another process owns the store's file, or holds it for longer than a transaction may last. Nothing was written.

    Facts: `path`, and the `pid` of an owner.
    """


class BeyondLimit(InputError):
    """The transaction function asks for what no backend does. Nothing was written; never repeated by `run`."""


class TransactionTooLarge(BeyondLimit):
    """Over `limits.TRANSACTION_BYTES` of keys and values: do it in several transactions."""


class KeyTooLarge(BeyondLimit):
    """A key over `limits.KEY_BYTES`."""


class ValueTooLarge(BeyondLimit):
    """A value over `limits.VALUE_BYTES`: cut it into several keys."""


class KeyOutsideRange(BeyondLimit):
    r"""A key that is not below ``\xff``, or a versionstamped one without room for its stamp."""


class InvertedRange(BeyondLimit):
    """A range that begins behind its end."""


class Unreadable(BeyondLimit):
    """Reads keys among which the same transaction put a versionstamped one: they are known only by its commit."""


class StoreMisconfigured(SetupError):
    """Something around the store must change; the facts say what."""


class StoreFailed(CoditectError):
    """The store has stopped for good: disk full, I/O error, or a damaged file.

    What was acknowledged before is written. The outcome of what was in flight is unknown. The process must end;
    one that went on would promise what it cannot keep.
    """
