"""What several agents share: confined paths, limited child processes, and readers and writers of their formats."""
