"""The client's side of breakers, handoffs, locks, schedules, discussion threads, triggers and the audit trail."""
