"""The settings of a program, read once at its start from the environment and `.coditect/env`.

No module below a program reads them.
"""
