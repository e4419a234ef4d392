"""The parts of a code review: ruff, smells in the syntax tree, and the findings of both."""
