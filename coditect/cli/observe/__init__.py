"""Commands about a running fleet as a whole (`top`, `log`, `mcp`), and the shell completion of its names."""
