"""The recovery from a loss: a shard's queues and publications, the work of a dead agent, an incarnation.

This package imports shards, scheduling and the layers below them; `program` and the requests call it.
"""
