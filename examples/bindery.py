"""An agent that binds books: its two capabilities are the steps of a workflow."""

from dataclasses import dataclass

from coditect import Agent

bindery = Agent("bindery", version="1.0.0", slots=10)


@dataclass
class Chapter:
    title: str
    text: str


@dataclass
class Count:
    title: str
    words: int


@bindery.capability("chapter.count", timeout="10s")
async def count(chapter: Chapter) -> Count:
    """Count the words of a chapter."""
    if not chapter.text:
        raise ValueError(f"{chapter.title} is empty")
    return Count(chapter.title, len(chapter.text.split()))


@bindery.capability("book.bind", timeout="10s")
async def bind(chapters: list[Count]) -> str:
    """Make a book's table of contents from the counts of its chapters."""
    return ", ".join(f"{chapter.title} ({chapter.words})" for chapter in chapters)
