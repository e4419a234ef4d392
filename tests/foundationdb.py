"""`python -m tests.foundationdb [--processes N] -- COMMAND...`: run a command on a private FoundationDB.

The command finds the cluster by ``FDB_CLUSTER_FILE``; the cluster ends with the command, whose exit code is ours. With
``--there`` nothing is run: the exit code is 0 when FoundationDB's programs are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coditect.aio.loop import run_loop
from coditect.local.errors import LocalError
from coditect.local.foundationdb import find_foundationdb, private_foundationdb


async def run_on_cluster(command: Sequence[str], *, processes: int) -> int:
    """Run a command on a new cluster, and return the command's exit code."""
    with tempfile.TemporaryDirectory(prefix="coditect-fdb-") as folder:
        async with private_foundationdb(Path(folder), environ=os.environ, processes=processes) as cluster:
            print(f"a private FoundationDB of {processes} process(es) runs in {folder}", flush=True)
            environ = {**os.environ, "FDB_CLUSTER_FILE": str(cluster.cluster_file)}
            process = await asyncio.create_subprocess_exec(*command, env=environ)
            return await process.wait()


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.foundationdb")
    options.add_argument("--there", action="store_true")
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("command", nargs="*")
    chosen = options.parse_args(arguments)
    if chosen.there:
        return 0 if find_foundationdb(os.environ) else 1
    try:
        return run_loop(run_on_cluster(chosen.command, processes=chosen.processes))
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
