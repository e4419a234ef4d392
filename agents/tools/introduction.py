"""The introduction of a page, which the capability `writers.introduction` writes, by a language model."""

from __future__ import annotations

from coditect import Context

_READ_CHARACTERS = 4_000


async def introduced(markdown: str, ctx: Context) -> str:
    """Return a page with an introduction by another agent below its title; the caller holds no slot meanwhile.

    Raises:
        TaskFailed: when the markdown agent gave none.
        UnknownCapability: when no agent offers `writers.introduction`.
    """
    title, _, rest = markdown.partition("\n\n")
    asked = {"title": title.lstrip("# "), "text": rest[:_READ_CHARACTERS]}
    text = await ctx.request("writers.introduction", asked, str, timeout="2m")
    return f"{title}\n\n{text.strip()}\n\n{rest}"
