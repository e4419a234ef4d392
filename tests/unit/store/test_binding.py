from __future__ import annotations

import subprocess
import sys


def run(program: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_binding_needs_no_native_library_and_leaves_no_importer_behind() -> None:
    run(
        "import sys; from dispatcher.store.binding import load_binding; load_binding(); import fdb.subspace_impl; "
        "assert all(hasattr(finder, 'find_spec') for finder in sys.meta_path)"
    )


def test_dispatcher_on_another_store_needs_no_binding_and_one_on_foundationdb_says_how_to_install_it() -> None:
    run(
        "import sys; sys.modules['fdb'] = None\n"
        "import dispatcher\n"
        "from coditect.errors import SetupError\n"
        "from dispatcher.store.fdb import FdbDatabase\n"
        "try: FdbDatabase()\n"
        "except SetupError as error: assert 'coditect[fdb]' in str(error), error\n"
        "else: raise AssertionError"
    )
