"""Which agent gets a task when the sender picks one: pure strategies and scores, and the client's memory for them."""
