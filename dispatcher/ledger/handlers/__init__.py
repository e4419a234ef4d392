"""The functions that apply commands to a shard in a transaction: agents' results, clients' requests, due timers."""
