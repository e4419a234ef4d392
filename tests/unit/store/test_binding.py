from __future__ import annotations

import subprocess
import sys


def test_the_tuple_layer_needs_no_native_library_and_leaves_no_importer_behind() -> None:
    program = (
        "import sys; from dispatcher.store.keys import Space; Space(('a',)).pack((1,)); "
        "assert all(hasattr(finder, 'find_spec') for finder in sys.meta_path)"
    )

    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
