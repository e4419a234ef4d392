"""The client's side of breakers, handoffs, locks, schedules, threads, triggers and the audit trail."""
