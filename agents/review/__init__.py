"""The parts of a code review: ruff's findings, smells in the syntax tree, and the class of a finding."""
