"""An operator's use cases for approvals, breakers, handoffs, locks, schedules, discussions, triggers and webhooks."""
