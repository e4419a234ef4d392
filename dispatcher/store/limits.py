"""FoundationDB's limits, which every backend enforces alike.

See https://apple.github.io/foundationdb/known-limitations.html. A transaction within the limits on one backend is
within the limits on all: the size is estimated as FoundationDB's client does, and rounded up.
"""

from __future__ import annotations

TRANSACTION_SECONDS = 5.0
"""From the start of the transaction function to its commit."""
TRANSACTION_BYTES = 10_000_000
"""Keys and values written, and the keys of reads that may conflict. Aim below a tenth of it."""
KEY_BYTES = 10_000
VALUE_BYTES = 100_000
KEY_END = b"\xff"
"""Every key sorts below this value."""
MUTATION_BYTES = 100
"""The cost of a write beside its own key and value and the two keys of its conflict range."""
READ_BYTES = 40
"""The cost of a read beside the two keys of its conflict range."""
RUN_SECONDS = 30.0
"""Default of the time that `Database.run` and `Database.read` may take, repetitions included."""
