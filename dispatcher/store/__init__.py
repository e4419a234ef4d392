"""The store of the control plane: ordered keys with serializable transactions, one port and three backends.

`port` defines what a database promises, `errors` what can go wrong, `keys` how tuples become keys. `sqlite` is the
embedded default, `fdb` FoundationDB, `memory` the twin for tests with faults. Everything above the store is a layer:
functions that take `tr` first and compose into the caller's transaction.
"""
