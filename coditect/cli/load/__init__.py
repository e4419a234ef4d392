"""`coditect load`: the load generator, and the report that compares submissions with answers and effects."""
