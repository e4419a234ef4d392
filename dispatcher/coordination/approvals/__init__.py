"""The read-only requests about approvals: a node's decision, the audit trail, and how much work needed no person."""
