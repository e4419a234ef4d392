"""The ownership of parts of the ledger: named leases, shards shared among dispatchers, and incarnations of a store."""
