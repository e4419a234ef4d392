"""The commands about conversations, handoffs of tasks, approval policy, logged decisions, and work without people."""
