"""The owners of a ledger's parts: named leases, the shards that dispatchers share, and a store's incarnations."""
