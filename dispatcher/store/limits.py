"""FoundationDB's limits on keys, values and transactions, which every backend of the store enforces.

See https://apple.github.io/foundationdb/known-limitations.html. A transaction within the limits on one backend is
within the limits on all: the size is estimated as FoundationDB's client does, and rounded up.
"""

from __future__ import annotations

TRANSACTION_SECONDS = 5.0
"""The longest time from the start of a transaction function to its commit."""
TRANSACTION_BYTES = 10_000_000
"""The most bytes of keys and values written and of keys read with conflicts; aim below a tenth of it."""
KEY_BYTES = 10_000
VALUE_BYTES = 100_000
KEY_END = b"\xff"
"""The exclusive upper bound of all keys."""
MUTATION_BYTES = 100
"""The bytes that a write counts beside its key, its value and the two keys of its conflict range."""
READ_BYTES = 40
"""The bytes that a read counts beside the two keys of its conflict range."""
RUN_SECONDS = 30.0
"""The default time limit of one call of `Database.run` or `Database.read`, with all its retries."""
