"""The commands about tasks, workflows and what concerns them, such as patterns, schedules, locks and dead letters."""
