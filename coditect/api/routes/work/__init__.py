"""The routes of work: tasks, workflows with what steers and starts them, and what was given up."""
