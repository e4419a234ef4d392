"""Helpers of several agents: path checks, child processes with limits, and parsers and writers of text formats."""
