"""FoundationDB's limits, which every backend enforces alike.

See https://apple.github.io/foundationdb/known-limitations.html. What stays within them on one backend stays
within them on all: the size is estimated as FoundationDB's client does, and rounded up.
"""

from __future__ import annotations

TRANSACTION_SECONDS = 5.0
"""From the begin of the transaction function to its commit."""
TRANSACTION_BYTES = 10_000_000
"""Keys and values written, and the keys of what was read and may conflict. Aim below a tenth of it."""
KEY_BYTES = 10_000
VALUE_BYTES = 100_000
KEY_END = b"\xff"
"""Every key sorts below this one."""
MUTATION_BYTES = 100
"""What a write costs beside its own key and value and the two keys of its conflict range."""
READ_BYTES = 40
"""What a read costs beside the two keys of its conflict range."""
RUN_SECONDS = 30.0
"""Default of the time that `Database.run` and `Database.read` may take, repetitions included."""
