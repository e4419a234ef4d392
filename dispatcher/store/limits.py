"""FoundationDB's limits, which every backend enforces alike.

See https://apple.github.io/foundationdb/known-limitations.html. A transaction within the limits on one backend is
within the limits on all: the size is estimated as FoundationDB's client does, and rounded up.
"""

from __future__ import annotations

TRANSACTION_SECONDS = 5.0
"""The most seconds from the start of a transaction function to its commit."""
TRANSACTION_BYTES = 10_000_000
"""The most bytes of keys and values that a transaction writes or reads with conflicts; use a tenth of it."""
KEY_BYTES = 10_000
VALUE_BYTES = 100_000
KEY_END = b"\xff"
"""The value below which every key sorts."""
MUTATION_BYTES = 100
"""The bytes that a write costs beside its key, its value and the two keys of its conflict range."""
READ_BYTES = 40
"""The bytes that a read costs beside the two keys of its conflict range."""
RUN_SECONDS = 30.0
"""The default of the seconds that `Database.run` and `Database.read` may take, repetitions included."""
