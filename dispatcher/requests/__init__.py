"""Requests of clients and of agents: read, brought to the shard that they are for, and answered.

`program` starts it. It imports shards and the ledger.
"""
