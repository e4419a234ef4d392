"""The recovery of lost queues, of the work of dead agents and dispatchers, and of a store that lost its latest data.

This package imports shards, scheduling and the layers below them; `program` and the requests call it.
"""
