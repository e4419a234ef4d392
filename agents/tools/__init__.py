"""Helpers that several agents share: confined paths, limited child processes, readers and writers of formats."""
