"""Markdown agents: files with front matter, as coding assistants use them, each of which becomes a capability.

::

    file         a file: its front matter, and the text that tells a model what to do
    tools        the fleet's capabilities that a file names, as tools of a model
    conversation  the bounded loop: the model is asked, its tools are called, until it answers
    declaration  the `Agent` of a folder of files

A language model does the work, through `coditect.chat`. What it answers is text of a stranger: it can call the
capabilities that its file names, with inputs that fit their schemas, and nothing else.
"""
