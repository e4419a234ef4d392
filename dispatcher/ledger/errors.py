"""What a layer can refuse, ordered by what the caller can do. Errors of the store itself pass through.

::

    CoditectError
    ├── LostLease             the lease is another's by now: stop working for it
    ├── DamagedValue          what was read is not what was written: a person must look
    └── InputError
        ├── ValueBeyondBound      over the bound of one value: send it by reference
        └── UnfitKey                  an idempotency key that is empty or too long
"""

from __future__ import annotations

from coditect.errors import CoditectError, InputError


class LostLease(CoditectError):
    """The lease was released, or taken over by another owner. Nothing was written by this try, nor by any later one.

    If the answer to an earlier commit of the same call was lost, that one may have been written, while the lease
    was still held. Never retryable: acquire anew. Facts: `lease`, `owner`, `epoch`, `owner_now`, `epoch_now`.
    """


class DamagedValue(CoditectError):
    """The pieces of a value are not what was written. Facts: `workflow`, `node`, `kind`, `reason`."""


class ValueBeyondBound(InputError):
    """Over `values.LARGEST_BYTES`. Nothing was written."""


class UnfitKey(InputError):
    """An idempotency key is 1 to `idempotency.LONGEST_KEY_BYTES` bytes of UTF-8."""
