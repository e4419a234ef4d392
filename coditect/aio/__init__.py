"""Helpers of every program: background tasks, cancellation, clock, event loop, launcher, ready file.

Every package may use these helpers. They import only `coditect.errors`, `coditect.model.ids` and each other.
"""
