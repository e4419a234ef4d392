"""A load test: the generator of tasks, and the report that compares tasks with answers and effects."""
