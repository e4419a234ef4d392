"""The claim of nodes that RQ proposes, and the comparison of RQ's copy with the ledger, which alone decides.

`program` starts this package, which imports `taskgraph`, `shards` and the layers below them.
"""
