"""RQ proposes what may run and the ledger disposes: proposals are claimed, and RQ's copy is compared with the ledger.

`program` starts it. It imports `taskgraph`, `shards` and what is below.
"""
