"""The detection of dead agents and of a broker that lost its data, and the release of dead processes' deliveries.

This package imports the ports and the ledger; shards and recovery call it.
"""
