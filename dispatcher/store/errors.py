r"""The errors of the store, ordered by what the caller can do, with FoundationDB's error code where there is one.

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
    │       ├── KeyOutsideRange       2004  a key from ``\xff`` on
    │       └── InvertedRange         2005  the begin is behind the end
    ├── SetupError
    │   └── StoreMisconfigured        no library, no cluster file, not a store, one of another version
    └── StoreFailed                   disk full, I/O error, damaged file: end the process
"""

from __future__ import annotations

from coditect.errors import CoditectError, InputError, Retryable, SetupError


class RetriedByRun(Retryable):
    """The base of errors after which `Database.run` repeats the transaction function, so that its callers see none."""


class TransactionConflict(RetriedByRun):
    """The error of a commit after another transaction changed a key that was read; nothing was written."""


class TransactionTooOld(RetriedByRun):
    """The error of a transaction that was open for too long, as a rule over 5 s; nothing was written."""


class CommitUnknown(RetriedByRun):
    """The error of a commit whose answer was lost: it is unknown whether all of its writes are stored or none."""


class TransactionTimedOut(Retryable):
    """The error of a `Database.run` that took too long; its writes were all committed, or none of them was.

    Call again, for the function is idempotent.
    """


class StoreUnavailable(Retryable):
    """The error of a store that cannot be used now or is closed; running transactions were written whole or not at all.

    An error of FoundationDB that has no error of its own here becomes this one.
    """


class StoreLocked(StoreUnavailable):
    """The error of a store file that another process owns, or holds for too long; nothing was written.

    Facts: `path`, and the `pid` of an owner.
    """


class BeyondLimit(InputError):
    """The base of errors of a transaction that asks for more than any backend of the store permits.

    Nothing was written; never repeated by `run`.
    """


class TransactionTooLarge(BeyondLimit):
    """The error of a transaction over 10 MB, which counts written keys and values, and read keys: use several ones.

    The reads of a snapshot do not count; see `limits.TRANSACTION_BYTES`.
    """


class KeyTooLarge(BeyondLimit):
    """The error of a key that is longer than 10 kB (`limits.KEY_BYTES`)."""


class ValueTooLarge(BeyondLimit):
    """The error of a value that is larger than 100 kB (`limits.VALUE_BYTES`): divide the value among several keys."""


class KeyOutsideRange(BeyondLimit):
    r"""The error of a key that is not below ``\xff``, where FoundationDB's own keys begin."""


class InvertedRange(BeyondLimit):
    """The error of a range that begins behind its end."""


class StoreMisconfigured(SetupError):
    """The error of a store's file or settings that are missing or wrong; the error's facts name the cause."""


class StoreFailed(CoditectError):
    """The error of a store that has stopped for good, such as by a full disk, an I/O error or a damaged file.

    Acknowledged transactions are written. The outcome of transactions in flight is unknown. The process must end: a
    process that went on would promise what it cannot keep.
    """
