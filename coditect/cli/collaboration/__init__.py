"""The commands about threads, handoffs, the approval policy, the audit trail and the autonomy rate."""
