"""The protection of a process against dependencies that fail: circuit breakers, and retries under a budget.

Agents and clients call the package, through `Context` and `Client`; fleet-wide breakers ask
the control plane by `messaging`.
"""
