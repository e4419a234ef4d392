"""Helpers of every program: supervised tasks, loops that restart, cancellation, clock, event loop, failpoints, launch.

Every package may use these helpers. They import only `coditect.errors`, `coditect.model.ids` and each other.
"""
