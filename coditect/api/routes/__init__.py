"""The routes of the HTTP API, one module for each noun: each reads a request, calls one use case, and answers."""
