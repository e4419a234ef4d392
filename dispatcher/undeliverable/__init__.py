"""The answers to publishers of tasks that no queue took or that the broker gave up.

Every dispatcher reads its share of the copies that the broker made. This package imports only `coditect`.
"""
