"""The HTTP routes of tasks, workflows and dead letters, and of what steers or starts workflows, such as schedules."""
