"""The means by which agents coordinate, such as locks and handoffs, kept in the store and changed in transactions.

A module has one kept thing, such as locks. It exports `VERBS`, the requests about the thing, and `TIMERS`, the handlers
of its timers, which belong to a shard and to no workflow. `shards/verbs.py` puts the tables of all modules together.
Like the ledger, this package does no I/O and reads no clock.
"""
