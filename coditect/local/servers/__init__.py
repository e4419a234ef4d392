"""Private servers: the search for installed programs, ports and secrets, the start, and probes of an address."""
