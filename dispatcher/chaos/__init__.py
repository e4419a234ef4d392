"""The proof: break everything on purpose, write down what happened, and let pure functions read it.

``history``     one line per thing that happened, per process, merged afterwards
``history_index`` a history sorted by what it is about
``invariants``  the promises, each a function over a story
``check``       what came of checking them, and how sure one may be
"""
