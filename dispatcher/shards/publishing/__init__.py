"""The publish of a shard's tasks, with the trace that each one continues."""
