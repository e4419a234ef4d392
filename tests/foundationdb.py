"""`python -m tests.foundationdb [--processes N] -- COMMAND...`: run a command on a FoundationDB.

It is the cluster of ``FDB_CLUSTER_FILE``, else a container where ``CODITECT_TEST_SERVERS=containers`` and Docker
answers, else a private one of N processes. The command finds it by ``FDB_CLUSTER_FILE``; one that was started ends
with the command, whose exit code is ours. With ``--there`` nothing is run: the exit code is 0 when such a cluster can
be had, with ``--private`` when FoundationDB's programs are installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coditect.errors import SetupError
from coditect.local.private import find_foundationdb
from coditect.testing.servers import Kind, running_foundationdb, select


def run_on_cluster(command: Sequence[str], *, processes: int) -> int:
    """Run a command on a cluster, and return the command's exit code."""
    with (
        tempfile.TemporaryDirectory(prefix="coditect-fdb-") as folder,
        running_foundationdb(Path(folder), os.environ, processes=processes) as file,
    ):
        print(f"on the FoundationDB of {file}", flush=True)
        return subprocess.run(command, env={**os.environ, "FDB_CLUSTER_FILE": str(file)}, check=False).returncode


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.foundationdb")
    options.add_argument("--there", action="store_true")
    options.add_argument("--private", action="store_true")
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("command", nargs="*")
    chosen = options.parse_args(arguments)
    installed = find_foundationdb(os.environ) is not None
    try:
        if chosen.private:
            return 0 if installed else 1
        if chosen.there:
            named = bool(os.environ.get("FDB_CLUSTER_FILE"))
            return 0 if installed or named or select(os.environ) is Kind.CONTAINERS else 1
        return run_on_cluster(chosen.command, processes=chosen.processes)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
