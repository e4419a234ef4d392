"""What agents and clients share with each other, as seen from their side: locks and elections.

The control plane keeps it (`dispatcher/coordination`) and is asked over the broker. A client and a handler's context
use this package, which imports messaging, the wire and the model.
"""
