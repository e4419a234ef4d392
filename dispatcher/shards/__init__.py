"""The ownership of shards, and the worker that applies commands to one shard, batch by batch.

`program` starts this package, which imports the ledger, the store and the ports.
"""
