"""An operator's use cases for approvals, breakers, handoffs, locks, schedules, threads, triggers and webhooks."""
