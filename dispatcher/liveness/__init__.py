"""Which agents live, and what a process that is gone still holds at the broker.

It imports the ports and the ledger's leases; shards and recovery call it.
"""
