"""The scheduler that claims ready nodes for publishing, and the reconciler that corrects RQ's copy of the ledger.

The schedules that start workflows by the clock are in `coordination/schedules.py`.

`program` starts this package, which imports `taskgraph`, `shards` and the layers below them.
"""
