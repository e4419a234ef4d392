"""Settings: a program reads them once, at its start, from the environment and `.coditect/env`, and passes values on.

No module below a program reads them.
"""
