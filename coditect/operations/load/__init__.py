"""A load test: the generator, and the report that compares submissions with answers and effects."""
