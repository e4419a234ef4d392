"""What travels between processes, and how it lies in messages: bodies, headers, names of exchanges and queues.

Pure: nothing here does I/O or knows a clock. Everybody who publishes or reads a message calls it; it imports the model
and the errors. The formats are described in `docs/wire.md`.
"""
