"""RQ as the task manager: it proposes what may run, the ledger disposes.

Every node of a workflow is an RQ job in RQ's own data model, so that stock tools show and count it, and people may
cancel and requeue it. Jobs are written, released and adopted in batches instead of by RQ's own path. Nothing here
knows the store: what RQ says may be late, lost or wrong, and only delays a node.
"""
