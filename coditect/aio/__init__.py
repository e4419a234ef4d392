"""What every program does with asyncio: tasks that are watched over, and loops that are started again.

Everything may use it; it imports nothing of the product but the errors and its own kind.
"""
