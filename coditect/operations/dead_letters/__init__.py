"""The dead letters of direct tasks: the value, its queues, and how they are listed, redriven and discarded."""
