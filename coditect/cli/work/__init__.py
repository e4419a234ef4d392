"""The commands on work: tasks, workflows, their approvals, and dead letters."""
