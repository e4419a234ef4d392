"""Which agents live: their leases, pings, and what follows from the death of one."""
