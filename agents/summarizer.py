"""The agent that shortens a text to its most central sentences, without a language model.

TextRank ranks the sentences of a text by their similarity to the others.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from coditect import Agent, Context, Retry

MAX_SENTENCES = 400
"""The most sentences that are ranked, since ranking is quadratic; those with frequent words are kept."""

_ROUNDS = 30
_DAMPING = 0.85
_WORD = re.compile(r"[^\W\d_][\w'-]+")
_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=[\"'(\[`]*[^\W\d_a-z]|\d|`)|\n\s*\n")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Dr|Mr|Mrs|Ms|St|No|Fig|approx|al)|\b[A-Z])\.$")
_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_ASIDE = re.compile(r"<!--.*?-->|^\s*\|.*\|\s*$|^\s*!\[[^\n]*\]\([^)\n]*\)\s*$", re.MULTILINE | re.DOTALL)
"""HTML comments, rows of tables, and pictures."""
_LINK = re.compile(r"\[([^\]\n]*)\]\([^)\s]*\)")
_HEADING = re.compile(r"^\s*(#{1,6}\s.*|[=\-~*_]{3,})\s*$", re.MULTILINE)
_MARK = re.compile(r"^\s*(?:[-*+>]|\d+\.)\s+", re.MULTILINE)
_STOP_WORDS = """
a about above after again all also am an and any are as at be because been before being below between
both but by can cannot could did do does doing down during each either else ever every few for from
further get gets had has have having he her here him his how however i if in into is it its itself just
less let may me might more most much must my neither no nor not now of off often on once one only or
other our out over own per rather same shall she should since so some still such than that the their
them then there these they this those through thus to too under until up upon us use used uses using
very was we well were what when where whether which while who whose why will with within without would
yet you your
"""
_STOP = frozenset(_STOP_WORDS.split())


def split_sentences(text: str) -> list[str]:
    """Return the sentences of plain text or Markdown in order, without code, tables, headings and marks of lists."""
    prose = text
    for no_prose in (_FENCE, _ASIDE, _HEADING, _MARK):
        prose = no_prose.sub("\n\n", prose)
    prose = _LINK.sub(r"\1", prose)
    sentences: list[str] = []
    for part in _END.split(prose):
        sentence = " ".join((part or "").split())
        if sentences and _ABBREVIATION.search(sentences[-1]):
            sentences[-1] += " " + sentence
        elif _WORD.search(sentence):
            sentences.append(sentence)
    return sentences


def words_of(sentence: str) -> list[str]:
    """Return the words of a text in lower case, without stop words."""
    return [word for word in _WORD.findall(sentence.lower()) if word not in _STOP]


def top_sentences(sentences: Sequence[str], limit: int) -> list[str]:
    """Return at most `limit` central sentences in the text's order; the earlier sentence wins a tie."""
    unique = list(dict.fromkeys(sentences))
    words = [words_of(sentence) for sentence in unique]
    kept = _thin_out(words)
    scores = _rank([words[index] for index in kept])
    best = sorted(range(len(kept)), key=lambda at: (-scores[at], kept[at]))[:limit]
    return [unique[index] for index in sorted(kept[at] for at in best)]


def top_words(sentences: Sequence[str], limit: int) -> list[str]:
    """Return the `limit` most frequent words, without stop words; the alphabetical order decides a tie."""
    counts = Counter(word for sentence in sentences for word in words_of(sentence))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]]


def _thin_out(words: list[list[str]]) -> list[int]:
    if len(words) <= MAX_SENTENCES:
        return list(range(len(words)))
    counts = Counter(word for sentence in words for word in sentence)
    weight = [sum(counts[word] for word in sentence) / (len(sentence) + 1) for sentence in words]
    return sorted(sorted(range(len(words)), key=lambda index: (-weight[index], index))[:MAX_SENTENCES])


def _rank(words: list[list[str]]) -> list[float]:
    count = len(words)
    vectors = _vectors(words)
    links: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for left in range(count):
        for right in range(left + 1, count):
            alike = _cosine(vectors[left], vectors[right])
            if alike > 0:
                links[left].append((right, alike))
                links[right].append((left, alike))
    total = [sum(alike for _, alike in row) for row in links]
    scores = [1.0] * count
    for _ in range(_ROUNDS):
        scores = [
            (1 - _DAMPING) + _DAMPING * sum(scores[other] * alike / total[other] for other, alike in row)
            for row in links
        ]
    return scores


def _vectors(words: list[list[str]]) -> list[dict[str, float]]:
    """Return the sentences' TF-IDF vectors at length one, so that the dot product of two is their cosine similarity."""
    document_counts = Counter(word for sentence in words for word in set(sentence))
    vectors = []
    for sentence in words:
        vector = {
            word: times * math.log(1 + len(words) / document_counts[word]) for word, times in Counter(sentence).items()
        }
        length = math.sqrt(sum(weight * weight for weight in vector.values())) or 1.0
        vectors.append({word: weight / length for word, weight in vector.items()})
    return vectors


def _cosine(left: dict[str, float], right: dict[str, float]) -> float:
    if len(left) > len(right):
        left, right = right, left
    return sum(weight * right[word] for word, weight in left.items() if word in right)


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
