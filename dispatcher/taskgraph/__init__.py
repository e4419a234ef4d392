"""The copy of workflows as jobs in RQ (Redis Queue), which proposes the nodes to run; the ledger decides.

Every node of a workflow is an RQ job in RQ's own data model, so that stock tools show and count it, and people may
cancel and requeue it. Jobs are written, released and adopted in batches instead of by RQ's own path. This package does
not know the store: RQ's data may be late, lost or wrong, which only delays a node.
"""
