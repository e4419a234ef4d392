"""Who may use the HTTP API, and for what: the callers, their credentials and roles, and the checks of each request."""
