"""Commands for a running fleet: watch it, set log levels, offer it as MCP tools; and shell completion."""
