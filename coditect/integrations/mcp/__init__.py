"""The Model Context Protocol both ways: the fleet's capabilities as tools, and a server's tools as capabilities.

`serving` and `resources` answer MCP clients, over the streams that `program` opens; `servers` and `declaration` make an
agent of any MCP server. The package needs the extra `mcp`.
"""
