"""The append-only trail of questions, decisions and people's orders, and counters of work done with or without people.

An entry is written by the transaction that carries the decision out, so it is there exactly when the decision is.
"""
