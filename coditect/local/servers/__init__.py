"""Private servers: the search for their programs, their ports and secrets, their start, and the probe of an address."""
