"""Who may use the HTTP API, and for what: the callers, their roles, and the addresses that may be served."""
