"""The commands about discussion threads, handoffs of tasks, approval policies, decisions, and work without people."""
