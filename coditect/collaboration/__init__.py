"""What agents and clients share, as seen from their side: locks, elections, shared state, threads and handoffs.

The control plane keeps it (`dispatcher/coordination`) and is asked over the broker. A client and a handler's context
use this package, which imports messaging, the wire and the model.
"""
