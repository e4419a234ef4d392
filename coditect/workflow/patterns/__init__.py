"""Patterns: named workflows with parameters, kept as files and rendered to ordinary workflows.

`pattern` finds and reads patterns, checks their parameters and makes workflows; `merging` merges several results.
"""
