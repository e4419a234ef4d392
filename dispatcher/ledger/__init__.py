"""The ledger: workflows, their nodes and attempts, as rows of the store; the only truth about them.

Everything here is a function of a transaction: it touches nothing else, does no I/O and knows no clock.

::

    rows, versions    rows as values, how they lie in the store, and which versions of them are read
    keyspace          every key
    unit_of_work      one transaction's view of one shard: rows read once, changed in place, written once
    effects           what follows from a transaction outside of the store
    commands          what may be said to a shard, as values; handlers/ do them
    nodes/            one node: claimed, attempted, finished
    workflows/        a workflow as a whole
    leases, shards, timers, outbox, idempotency, answers, values, incarnation: layers of their own

The shards' workers call it; it imports the store's port, `coditect.model`, `coditect.wire` and `coditect.workflow`.
"""
