"""Private servers: the search for installed programs, the choice of ports and secrets, the start, and probes."""
