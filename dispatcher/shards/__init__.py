"""Shards: who owns which, and the worker that applies commands to one, batch by batch.

`program` starts it. It imports the ledger, the store and the ports.
"""
