"""The command `coditect goal`, which makes a workflow from a sentence (a goal) and runs it."""
