"""Helpers of all commands at a terminal: JSON arguments, tables, JSON output, progress, errors and waits."""
