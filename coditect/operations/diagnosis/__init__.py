"""The answer to "where is my task, and why does no agent take it?": agents and queues are asked, a verdict is given."""
