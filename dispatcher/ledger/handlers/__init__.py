"""The handlers of the commands to a shard, as functions of a transaction: results, requests, timers."""
