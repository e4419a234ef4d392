from __future__ import annotations

import pytest
from pydantic import ValidationError

from agents.summarizer import MAX_SENTENCES, SummaryRequest, split_sentences, summarize
from coditect import Context

TEXT = """
The broker keeps every message until an agent confirms it. An agent asks the broker for messages and confirms
them when the work is done. Bananas are yellow. When an agent dies, the broker gives its messages to another
agent.
"""


def test_summary_keeps_the_central_sentences_in_their_order_and_the_frequent_words(ctx: Context) -> None:
    summary = summarize(SummaryRequest(text=TEXT, sentences=2), ctx)

    assert len(summary.sentences) == 2
    assert summary.sentences_read == 4
    assert "Bananas" not in summary.summary
    positions = [TEXT.replace("\n", " ").index(sentence) for sentence in summary.sentences]
    assert positions == sorted(positions)

    assert summarize(SummaryRequest(text=TEXT, keywords=2), ctx).keywords == ["agent", "broker"]


@pytest.mark.parametrize("text", ["", "   \n\n ", "```python\nx = 1\n```"])
def test_text_without_sentences_has_an_empty_summary(text: str, ctx: Context) -> None:
    summary = summarize(SummaryRequest(text=text), ctx)

    assert (summary.summary, summary.keywords) == ("", [])


def test_repeated_sentence_is_kept_once(ctx: Context) -> None:
    request = SummaryRequest(text="The same thing again. " * 50, sentences=3)
    assert summarize(request, ctx).sentences == ["The same thing again."]


@pytest.mark.proof
def test_long_text_is_thinned_out_before_it_is_ranked(ctx: Context) -> None:
    text = " ".join(f"Sentence number{chr(97 + n % 26)} speaks about topic{chr(97 + n % 7)}." for n in range(3000))
    text += " " + " ".join(f"Unique word{'x' * (n % 50)}y{'z' * (n // 50)} here." for n in range(MAX_SENTENCES))

    assert len(summarize(SummaryRequest(text=text, sentences=5), ctx).sentences) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It works, e.g. Here. Then it ends.", ["It works, e.g. Here.", "Then it ends."]),
        ("# Title\n\nOne thing.\n\n- first point\n- second point", ["One thing.", "first point", "second point"]),
        ("Version 1.2 is out! Is it good? Yes.", ["Version 1.2 is out!", "Is it good?", "Yes."]),
        ("Before.\n```\ncode here. More.\n```\nAfter.", ["Before.", "After."]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_request_for_no_sentence_is_refused() -> None:
    with pytest.raises(ValidationError):
        SummaryRequest(text="x", sentences=0)


def test_tables_comments_pictures_and_the_targets_of_links_are_no_sentences() -> None:
    table = "| a | b |\n|---|---|\n| c | d |\n"
    text = f"<!-- a\nnote -->\nRead [the page](docs/page.md) first.\n\n![a picture](x.png)\n\n{table}"

    assert split_sentences(text) == ["Read the page first."]
