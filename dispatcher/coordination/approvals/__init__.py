"""The requests that only read about approvals: one decision with its reasons, the audit trail, and the autonomy."""
