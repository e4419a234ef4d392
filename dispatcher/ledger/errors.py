"""The errors of the ledger, ordered by what the caller can do; errors of the store itself are raised as they are.

::

    CoditectError
    ├── LostLease             another owner has the lease: stop working for it
    ├── DamagedValue          the value read is not the value written: a person must look
    └── InputError
        ├── ValueBeyondBound      over the size limit of one value: send it by reference
        ├── UnfitKey                  an idempotency key that is empty or too long
        └── KeyReused                 an idempotency key that came with another request before
"""

from __future__ import annotations

from coditect.errors import CoditectError, InputError


class LostLease(CoditectError):
    """The error of a dispatcher that lost or released the lease it works under, or acquires one while taken for dead.

    Nothing is written, unless an earlier commit of the same call, while the lease was still held, lost its answer.
    Never retryable: acquire the lease again. Facts: `lease`, `owner`, `epoch`, `owner_now`, `epoch_now`.
    """


class DamagedValue(CoditectError):
    """The error of a stored value that differs from the value that was written, by its size or its hash."""


class ValueBeyondBound(InputError):
    """The error of a value that is too large to store, or of values too large for a node's expressions to read."""


class UnfitKey(InputError):
    """The error of an idempotency key that is empty, longer than 1,000 bytes of UTF-8, or no valid Unicode."""


class KeyReused(InputError):
    """The error of a request whose idempotency key was used by another request before, as their fingerprints show."""
