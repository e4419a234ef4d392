"""Layers over the coordination store, in FoundationDB's sense: functions that take `tr` first.

They compose into the caller's transaction, do no I/O and know no clock: the time is passed in. They change nothing but
the store: what else follows they return, and the caller applies it after the commit. Each is idempotent by a natural
key, so a transaction that is repeated after an unknown commit does nothing twice. `keyspace` draws where
everything lies, `errors` what can go wrong.
"""
