"""What an operator reads and changes of breakers, locks and schedules; the command line calls it."""
