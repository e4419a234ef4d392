"""FoundationDB's Python binding, imported here and nowhere else.

Its tuple layer and subspaces, which pack the keys of every store, need no native library; opening a database does. The
binding carries an old `six` whose importer has no `find_spec`, which Python 3.12 ignores, 3.11 warns about and other
tools stumble over. The binding itself does not use it, so it is taken out of the program's importers again.
"""

from __future__ import annotations

import sys

import fdb
import fdb.tuple
from fdb.subspace_impl import Subspace
from fdb.tuple import Versionstamp

__all__ = ["Subspace", "Versionstamp", "fdb"]

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "fdb.six"]
