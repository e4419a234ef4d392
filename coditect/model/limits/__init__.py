"""The limits that a capability may declare: circuit breakers, a rate, and how many tasks with one key run at once."""
