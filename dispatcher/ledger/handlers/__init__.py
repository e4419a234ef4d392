"""What each command to a shard does, as functions of a transaction: results, requests, timers."""
