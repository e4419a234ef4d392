"""The publishing of a shard's tasks to the broker, and the tracing spans of the publications."""
