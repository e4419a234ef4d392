"""Language models behind any OpenAI-compatible chat endpoint: one request, one streamed answer, within a budget.

::

    port      messages, tools, an answer, and the port that answers; the budget of a conversation; the errors
    endpoint  the adapter: HTTP with limits of time and size, and the answer of the parts of a stream

Markdown agents and the planner of goals call it. It imports `settings`, `wire` and `errors`. What a model answers is
text of a stranger: nothing here acts on it. The package is part of the extra `chat`, except for the port.
"""
