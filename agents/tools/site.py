"""A static site of Markdown pages: each becomes an HTML page, with links to the others.

Raw HTML in a page stays text.

The introduction of a page is written by the capability `writers.introduction`, by a language model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import count

from markdown_it import MarkdownIt

from coditect import Context

_READ_CHARACTERS = 4_000


async def introduced(markdown: str, ctx: Context) -> str:
    """Return a page with an introduction by another agent below its title; the caller holds no slot meanwhile.

    Raises:
        TaskFailed: when the markdown agent gave none.
        UnknownCapability: when no agent offers `writers.introduction`.
    """
    title, _, body = markdown.partition("\n\n")
    asked = {"title": title.lstrip("# "), "text": body[:_READ_CHARACTERS]}
    text = await ctx.request("writers.introduction", asked, str, timeout="2m")
    return f"{title}\n\n{text.strip()}\n\n{body}"


INDEX = "index.html"
LONGEST_SLUG, LONGEST_TITLE = 80, 200
_STYLE = "body{max-width:50em;margin:2em auto;padding:0 1em;font:1em/1.5 sans-serif}nav a{margin-right:1em}"


def build_site(
    title: str, pages: Sequence[tuple[str, str]], *, missing: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """Return the files of a site by their names, from titles and Markdown texts; the first file is `index.html`.

    The index also lists, by the titles of the pages, what is missing in each.
    """
    names: dict[str, tuple[str, str]] = {}
    for name, text in pages:
        names[_free(_slug(name), names)] = name, text
    links = "".join(f'<a href="{file}">{escape(name)}</a>' for file, (name, _) in names.items())
    markdown = MarkdownIt("commonmark", {"html": False})
    index = "".join(f"<h2>{escape(name)}</h2><p>{escape(_first(text))}</p>" for name, text in pages)
    gaps = "".join(f"<li>{escape(name)}: {escape('; '.join(lines))}</li>" for name, lines in (missing or {}).items())
    index += f"<h2>Not found</h2><ul>{gaps}</ul>" if gaps else ""
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
