"""Patterns: named workflows with parameters, kept as files and rendered to ordinary workflows.

`pattern` has the values and checks parameters, `catalogue` finds and reads files, `rendering` makes the workflow.
"""
