"""Runs a Python block of the documentation: a script with `await` at the top, as in `python -m asyncio`."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from pathlib import Path


def main(path: str) -> None:
    """Runs the file in a module of its own, with the current folder first on the path."""
    sys.path[0] = str(Path.cwd())
    code = compile(Path(path).read_text(encoding="utf-8"), path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, {"__name__": "__main__", "__file__": path})
    if inspect.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    main(sys.argv[1])
