"""The parts of a code review: the findings with their severities, the run of ruff, and checks of the syntax tree."""
