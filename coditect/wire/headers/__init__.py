"""The headers of a message that have a format of their own, each with the module that reads and writes it.

`history` has the failed attempts, `trace` the place in a trace, `foreign` what the publisher of a task added. `tasks`
reads and writes all other headers. The modules import the model, the errors and `wire.json`.
"""
