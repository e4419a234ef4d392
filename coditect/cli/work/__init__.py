"""The commands about tasks, workflows, schedules, triggers, webhooks, approvals, locks, breakers and dead letters."""
