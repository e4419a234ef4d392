"""Webhooks: events posted to URLs, signed as Standard Webhooks describes, and tried again until taken or given up.

`coditect.operations.coordination.webhooks` keeps them; here one event is sent (`sending.py`), and the events of each
webhook's queue until they are taken or given up (`delivering.py`). API processes share the queues, so any number of
them may run.
"""
