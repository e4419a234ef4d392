"""The checks of what agents and people do together: decisions, threads, votes."""
