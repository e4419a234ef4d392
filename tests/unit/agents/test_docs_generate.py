from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.documenter import DocsRequest, generate
from agents.summarizer import Summary
from coditect import Context
from coditect.errors import InputError

SOURCE = '''
"""Shapes. They have areas."""
import os

SIDES: int = 4
"""How many sides.

More words."""
_hidden = 1

raise SystemExit("imported")


class Square(Shape):
    """Four equal sides."""

    side: float = 1.0

    def area(self, *, scale: float = 1.0) -> float:
        """Side by side."""
        return self.side**2 * scale

    def _secret(self) -> None: ...


async def draw(shape: "Square") -> None:
    return None
'''


@pytest.fixture
def package(project: Path) -> Path:
    folder = project / "shapes"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""All shapes."""\n')
    (folder / "square.py").write_text(SOURCE)
    return folder


async def test_reference_shows_public_names_and_every_module_of_a_package(package: Path, ctx: Context) -> None:
    docs = await generate(DocsRequest(path=str(package / "square.py")), ctx)

    assert docs.title == "shapes.square"
    for expected in (
        "# `shapes.square`",
        "Shapes. They have areas.",
        "- `SIDES: int = 4`: How many sides.",
        "class Square(Shape)",
        "- `side: float = 1.0`",
        "def area(*, scale: float = 1.0) -> float",
        "async def draw(shape: Square) -> None",
    ):
        assert expected in docs.markdown
    assert "_hidden" not in docs.markdown
    assert "_secret" not in docs.markdown
    assert "More words" not in docs.markdown
    assert (docs.modules, docs.objects, docs.documented) == (1, 4, 3)

    whole = await generate(DocsRequest(path=str(package)), ctx)

    assert whole.title == "shapes"
    assert whole.modules == 2
    assert whole.markdown.index("# `shapes`") < whole.markdown.index("# `shapes.square`")


async def test_reference_with_a_summary_asks_the_summarizer_and_puts_it_on_top(
    package: Path, ctx: Context, answers: dict[str, Callable[[Any], object]]
) -> None:
    asked: list[Any] = []

    def answer(request: Any) -> Summary:
        asked.append(request)
        return Summary(summary="It has areas.", sentences=["It has areas."], keywords=["area"], sentences_read=1)

    answers["text.summarize"] = answer

    docs = await generate(DocsRequest(path=str(package / "square.py"), summary=True), ctx)

    assert docs.markdown.startswith("# `shapes.square`\n\n> It has areas.\n\nKeywords: area.\n\nShapes.")
    assert "Four equal sides." in asked[0].text


@pytest.mark.parametrize("codec", ["rot13", "base64", "zlib"])
async def test_module_in_no_encoding_of_text_is_left_out_alone(package: Path, ctx: Context, codec: str) -> None:
    (package / "odd.py").write_text(f"# -*- coding: {codec} -*-\nsize = 1\n")

    docs = await generate(DocsRequest(path=str(package)), ctx)

    (left_out,) = docs.left_out
    assert docs.modules == 2
    assert left_out.startswith(f"{package}/odd.py: its coding line names ")
    assert left_out.endswith("which is no encoding of text; write utf-8")


@pytest.mark.parametrize(
    ("name", "said"), [("broken.py", "no file is valid Python"), ("nowhere", "no such file or folder")]
)
async def test_reference_of_no_source_is_refused_for_good(name: str, said: str, project: Path, ctx: Context) -> None:
    (project / "broken.py").write_text("def (:\n")

    with pytest.raises(InputError, match=said) as refused:
        await generate(DocsRequest(path=str(project / name)), ctx)

    assert not refused.value.retryable
