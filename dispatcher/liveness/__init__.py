"""The detection of dead agents, and the release of deliveries that a gone process still holds at the broker.

This package imports the ports and the ledger's leases; shards and recovery call it.
"""
