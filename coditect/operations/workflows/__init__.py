"""What is asked of workflows: runs and their control, their history, and their checkpoints."""
