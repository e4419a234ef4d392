"""The append-only audit trail: one entry for each decision about a task or an approval, by a person or automatically.

An entry is written by the transaction that carries the decision out, so it is there exactly when the decision is.
"""
