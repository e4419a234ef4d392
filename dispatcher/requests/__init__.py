"""The server that reads requests of clients and agents, gives them to their shards, and answers them.

`program` starts this package, which imports shards and the ledger.
"""
