"""The command `coditect goal`, which makes a plan for a sentence and runs it."""
