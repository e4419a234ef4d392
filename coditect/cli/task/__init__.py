"""`coditect task`: submit a task, ask for it later, and find out why no agent takes it."""
