"""Workflows as values: definition, documents and files, graph, node states, and drawings."""
