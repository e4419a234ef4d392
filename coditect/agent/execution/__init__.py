"""How one task runs: its handler on the loop, in a thread or in a process, within its limits."""
