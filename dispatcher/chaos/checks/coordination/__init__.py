"""The promises about what agents coordinate with: locks, breakers, schedules, timers and signals."""
