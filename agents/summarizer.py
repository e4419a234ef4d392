"""The agent that shortens a text to its most central sentences, without a language model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from agents.tools.textrank import split_sentences, top_sentences, top_words
from coditect import Agent, Context, Retry

summarizer = Agent("summarizer", version="1.0.0", slots=16, tags=frozenset({"text"}))


class SummaryRequest(BaseModel):
    """A request for a summary: the text, and the number of sentences and keywords."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=500_000, description="plain text or Markdown")
    sentences: int = Field(3, ge=1, le=50, description="at most this many are kept")
    keywords: int = Field(8, ge=0, le=50, description="at most this many are given")


class Summary(BaseModel):
    """A summary: unchanged sentences of the text in their order, and keywords."""

    summary: str
    sentences: list[str]
    keywords: list[str]
    sentences_read: int


@summarizer.capability(
    "text.summarize",
    timeout="1m",
    retry=Retry(max_attempts=3, first="1s", cap="1m"),
    description="Picks the most central sentences and the keywords of a text.",
    tags=frozenset({"text", "extractive"}),
    cost=0.5,
)
def summarize(task: SummaryRequest, ctx: Context) -> Summary:
    """Shorten a text to its most central sentences, with keywords; the same text gives the same result.

    A plain function, so the runtime runs it in a thread, off the event loop.
    """
    found = split_sentences(task.text)
    best = top_sentences(found, task.sentences)
    return Summary(
        summary=" ".join(best),
        sentences=best,
        keywords=top_words(found, task.keywords),
        sentences_read=len(found),
    )
