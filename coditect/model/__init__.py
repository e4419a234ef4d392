"""The words of Coditect as frozen values and pure functions: no I/O, no clock, no randomness of their own."""
