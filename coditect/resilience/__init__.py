"""The protection of a process against dependencies that fail: retries under a budget.

Agents call the package, through `Context`; it imports `model` and `errors` only.
"""
