"""A static site of Markdown pages: each becomes an HTML page, with links to the others.

Raw HTML in a page stays text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape
from itertools import count

from markdown_it import MarkdownIt

INDEX = "index.html"
LONGEST_SLUG = 80
_STYLE = "body{max-width:50em;margin:2em auto;padding:0 1em;font:1em/1.5 sans-serif}nav a{margin-right:1em}"


def build_site(title: str, pages: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the files of a site by their names, from titles and Markdown texts; the first file is `index.html`."""
    names: dict[str, tuple[str, str]] = {}
    for name, text in pages:
        names[_free(_slug(name), names)] = name, text
    links = "".join(f'<a href="{file}">{escape(name)}</a>' for file, (name, _) in names.items())
    markdown = MarkdownIt("commonmark", {"html": False})
    index = "".join(f"<h2>{escape(name)}</h2><p>{escape(_first(text))}</p>" for name, text in pages)
    files = {"index.html": _page(title, title, links, f"<h1>{escape(title)}</h1>{index}")}
    return files | {file: _page(title, name, links, markdown.render(text)) for file, (name, text) in names.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_SLUG] or "page"


def _free(slug: str, taken: Collection[str]) -> str:
    """Return a file name for a slug that neither another page nor the index has; a taken name gets a number."""
    names = (f"{slug}{'' if number == 1 else f'-{number}'}.html" for number in count(1))
    return next(name for name in names if name not in taken and name != INDEX)


def _first(text: str) -> str:
    """Return the first paragraph of a Markdown text that is no heading, cut to 300 characters; empty without one."""
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    return next((part for part in parts if part and not part.startswith("#")), "")[:300]


def _page(title: str, name: str, links: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{escape(name)} - {escape(title)}</title><style>{_STYLE}</style>'
    nav = f'<nav><a href="index.html">{escape(title)}</a>{links}</nav>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{nav}<main>{body}</main></body></html>\n'
