"""The optional parts of a chaos run's load, one module each: capabilities of the agents, and actions of the client."""
