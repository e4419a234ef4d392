"""A load test: the generator of tasks, the watch on the slots, and the report on tasks, answers and effects."""
