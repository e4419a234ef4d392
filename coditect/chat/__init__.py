"""Language models behind any OpenAI-compatible chat endpoint: one request, one streamed answer, within a budget.

::

    port      messages, tools, an answer, and the port that answers
    budget    how many tokens and how much money a conversation may use
    failures  the errors, and which of them may be tried again
    answers   the answer, put together from the parts of a stream
    endpoint  the adapter: HTTP with limits of time and size

Markdown agents and the planner of goals call it. It imports `settings`, `wire` and `errors`. What a model answers is
text of a stranger: nothing here acts on it. The package is part of the extra `chat`, except for the port.
"""
