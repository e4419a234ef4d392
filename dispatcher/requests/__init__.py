"""The server of clients' and agents' requests, which reads them, brings them to the right shard, and answers.

`program` starts this package, which imports shards and the ledger.
"""
