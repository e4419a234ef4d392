"""The ledger: the only authority on workflows, their nodes and attempts, kept as rows of the store.

Every function here works on a transaction alone: it does no I/O and reads no clock.

::

    rows, versions    rows as values, their layout in the store, and the versions that can be read
    keyspace          every key
    unit_of_work      one transaction's view of one shard: rows read once, changed in place, written once
    effects           the consequences of a transaction outside of the store
    commands          the commands to a shard, as values; handlers/ carry them out
    nodes/            one node: claimed, attempted, finished
    workflows/        a workflow as a whole, with its checkpoints
    ownership/        leases, the shards that dispatchers share, and the incarnations of a store
    timers, outbox, idempotency, answers, values: layers of their own

The shards' workers call this package, which imports the store's port, `coditect.model`, `coditect.wire` and
`coditect.workflow`.
"""
