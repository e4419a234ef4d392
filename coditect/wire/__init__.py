"""The wire format: bodies and headers of all messages, and the names of exchanges, queues and routing keys.

Pure: no module here does I/O or knows a clock. All code that publishes or reads a message calls this package; the
package imports the model and the errors. The formats are described in `docs/wire.md`.
"""
