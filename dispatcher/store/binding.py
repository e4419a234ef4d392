"""The import of FoundationDB's Python binding; no other module imports the binding.

Its tuple layer and subspaces, which pack the keys of every store, need no native library; opening a database does. The
binding carries an old `six` whose importer has no `find_spec`, which Python 3.12 ignores, 3.11 warns about and other
tools stumble over. The binding itself does not use that importer, so this module removes it from the program's
importers.
"""

from __future__ import annotations

import sys

import fdb
import fdb.tuple
from fdb.subspace_impl import Subspace

__all__ = ["Subspace", "fdb"]

sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "fdb.six"]
