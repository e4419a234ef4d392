"""Helpers of every program: supervised tasks that restart, cancellation, clock, event loop, failpoints, launch, ready.

Every package may use these helpers. They import only `coditect.errors`, `coditect.model.ids` and each other.
"""
