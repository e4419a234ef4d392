"""What is made again after a loss: a shard's queues and publications, the work of an agent that died, an incarnation.

It imports shards, scheduling and what is below; `program` and the requests call it.
"""
