"""The commands on what agents and people decide together: the approval policy and the audit trail."""
