"""The domain model of Coditect as frozen values and pure functions, without I/O, clock or random source."""
