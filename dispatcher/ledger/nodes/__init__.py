"""The changes of one node of a workflow: claims, attempts, ends and retries, with the release of its dependents."""
