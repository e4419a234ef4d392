"""Settings: read once by a program from the environment and `.env`, and passed on as values.

Every program reads them at its start; nothing below a program does.
"""
