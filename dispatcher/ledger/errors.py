"""The errors of the ledger, ordered by what the caller can do. Errors of the store itself pass through.

::

    CoditectError
    ├── LostLease             another owner has the lease: stop working for it
    ├── DamagedValue          the value read is not the value written: a person must look
    └── InputError
        ├── ValueBeyondBound      over the size limit of one value: send it by reference
        └── UnfitKey                  an idempotency key that is empty or too long
"""

from __future__ import annotations

from coditect.errors import CoditectError, InputError


class LostLease(CoditectError):
    """The error of a lease that was released or taken over by another owner; nothing is written, now or later.

    If the answer to an earlier commit of the same call was lost, that commit may have been written, while the lease was
    still held. Never retryable: acquire the lease again. Facts: `lease`, `owner`, `epoch`, `owner_now`, `epoch_now`.
    """


class DamagedValue(CoditectError):
    """The error of a value whose pieces are not what was written. Facts: `workflow`, `node`, `kind`, `reason`."""


class ValueBeyondBound(InputError):
    """The error of a value over `values.LARGEST_BYTES`; nothing was written."""


class UnfitKey(InputError):
    """The error of an idempotency key that is not 1 to `idempotency.LONGEST_KEY_BYTES` bytes of UTF-8."""
