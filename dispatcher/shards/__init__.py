"""The shards that a dispatcher owns, and the worker that applies the commands to one shard, batch by batch.

`program` starts this package, which imports the ledger, the store and the ports.
"""
