"""How much an agent takes in hand, and which task starts next: queues, their consumers, and slots.

The runtime calls it; it imports the broker's port and `model`.
"""
