"""The table of docs/control-requests.md, made from the docstrings of `coditect.wire.control.Verb`.

``python -m tests.docs.verb_table`` writes it again.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise

from coditect.wire.control import Verb
from tests.servers import ROOT

PAGE = ROOT / "docs" / "control-requests.md"
BEGIN = "<!-- made by tests/docs/verb_table.py: begin -->"
END = "<!-- made by tests/docs/verb_table.py: end -->"


def told() -> Iterator[tuple[str, str]]:
    """Each verb with its docstring, on one line."""
    (made,) = ast.parse(inspect.getsource(Verb)).body
    assert isinstance(made, ast.ClassDef)
    for line, text in pairwise(made.body):
        if isinstance(line, ast.Assign) and isinstance(text, ast.Expr):
            verb, docstring = ast.literal_eval(line.value), ast.literal_eval(text.value)
            yield str(verb), " ".join(docstring.split())


def written(page: str) -> str:
    """The page with its table made again."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = "\n".join(f"| `{verb}` | {text} |" for verb, text in told())
    return f"{before}{BEGIN}\n\n| verb | what it does: fields → answer |\n|---|---|\n{rows}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
