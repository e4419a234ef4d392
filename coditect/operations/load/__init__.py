"""A load test: it generates tasks, watches the agents' slots, and reports on answers and executions."""
