"""Tasks that no queue took or that were given up: their publishers are answered.

Every dispatcher reads its share of the copies that the broker made. It imports only `coditect` and the counters.
"""
