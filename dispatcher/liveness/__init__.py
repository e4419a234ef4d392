"""The detection of dead agents and of a broker that lost its data.

This package imports the ports and the ledger; shards and recovery call it.
"""
