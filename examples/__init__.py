"""Small agents and clients, one pair for each pattern: docs/patterns.md. All of them run in the tests."""
