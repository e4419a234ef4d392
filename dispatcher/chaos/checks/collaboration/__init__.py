"""The checks of what agents and people do together: decisions, patterns, threads, votes."""
