"""`python -m tests.docs.follow docs/streams.md` follows a page on private servers, printing what each block prints.

`docs/locks.md#leaders` follows it to the end of that section, and prints the section's blocks alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from coditect.testing.servers import running_servers
from tests.docs.forked import forked_commands
from tests.docs.pages import Mark, blocks, lines_of
from tests.docs.reader import ALONE, Reader
from tests.servers import ROOT


def main(target: str) -> None:
    """Follow a page as the tests do; fail where a block does."""
    name, _, anchor = target.partition("#")
    shown = lines_of(ROOT / name, anchor)
    with (
        TemporaryDirectory(prefix="coditect-") as folder,
        running_servers() as servers,
        forked_commands(Path(folder), os.environ | ALONE) as commands,
    ):
        reader = Reader(Path(folder) / "reader", servers, commands)
        try:
            for block in blocks(ROOT / name):
                if block.line >= shown.stop:
                    break
                reader.follow(block)
                if block.line not in shown:
                    continue
                if block.runs or block.mark is Mark.FILE:
                    print(f"--- {block.place}", block.text, sep="\n", flush=True)
                if block.runs and block.mark is Mark.NONE:
                    print(reader.printed, flush=True)
        finally:
            reader.leave()


if __name__ == "__main__":
    main(sys.argv[1])
