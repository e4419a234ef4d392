"""The requests of clients and of agents: read, brought to the right shard, and answered.

`program` starts this package, which imports shards and the ledger.
"""
