"""The recovery after a loss: of a shard's queues, of a dead agent's or dispatcher's work, of store data.

This package imports shards, scheduling and the layers below them; `program` and the requests call it.
"""
