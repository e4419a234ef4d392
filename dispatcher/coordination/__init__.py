"""The means by which agents coordinate, such as locks and handoffs, kept in the store and changed in transactions.

A module has one kept thing, such as locks. It exports `LOCK_VERBS`, the requests about the thing, and `LOCK_TIMERS`,
the handlers of its timers, which belong to a shard and to no workflow. `shards/verbs.py` finds the tables by the noun.
Like the ledger, this package does no I/O and reads no clock.
"""
