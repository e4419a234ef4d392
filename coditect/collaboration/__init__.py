"""Locks, elections, shared state, discussion threads and handoffs, as agents and clients use them.

The control plane keeps them (`dispatcher/coordination`), and is asked over the broker. A client and a handler's context
use this package, which imports messaging, the wire and the model.
"""
