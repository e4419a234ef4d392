"""The checks of how work is coordinated: locks, breakers, approvals, schedules, timers, signals and others."""
