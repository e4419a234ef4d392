"""The ledger: workflows, their nodes and attempts, as rows of the store; the only truth about them.

::

    rows.py      the rows as values, and how they lie in the store
    book.py      one transaction's view of one shard: rows read once, changed in place, written once
    effects.py   what follows from a transaction outside of the store
    advance.py   how a workflow goes on: what may run, what ends, what follows from that
    approvals.py what waits for a person
    walks.py     every node of a workflow is gone over
    again.py     what ended without a value runs again, and what ended because of it waits again
    left_over.py long pieces of work go on in later transactions
    attempts.py  attempts that are over
    claiming.py  the one way of a node to the broker
    anew.py      what the broker lost is published again
    scope.py     what a node's expressions see
"""
