"""The import of FoundationDB's Python binding, which only a dispatcher on FoundationDB needs.

The binding carries an old `six` whose importer has no `find_spec`: Python 3.12 ignores it, 3.11 warns, other tools
stumble over it. The binding itself does not use that importer, so it is removed from the program's importers.
"""

from __future__ import annotations

import sys
from typing import Any

from coditect.errors import missing_extra


def load_binding() -> Any:
    """Import FoundationDB's Python binding, and return the module.

    Raises:
        SetupError: when the extra `fdb` is not installed.
    """
    try:
        # nobody on another store installs it; its tuple layer brings `six`, which the binding itself needs only later
        import fdb  # noqa: PLC0415
        import fdb.tuple  # noqa: PLC0415
    except ImportError as error:
        raise missing_extra("fdb") from error
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "fdb.six"]
    return fdb
