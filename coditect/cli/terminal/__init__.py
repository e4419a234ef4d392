"""What the commands share at a terminal: JSON arguments in, tables and JSON out, progress, errors and the wait."""
