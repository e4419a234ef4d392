"""An operator's use cases for workflows: run and control them, their history, checkpoints, and patterns."""
