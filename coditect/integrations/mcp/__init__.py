"""The Model Context Protocol both ways: the fleet's capabilities as tools, and a server's tools as capabilities.

`serving` answers MCP clients; `declaration` makes an agent of any MCP server. The package needs the extra `mcp`.
"""
