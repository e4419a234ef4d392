"""Settlement: choose result, retry or dead letter for an ended attempt, publish it, then acknowledge the task."""
