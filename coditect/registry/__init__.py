"""The registry of agents and their capabilities: port, Redis adapter, in-memory twin, and the selection of an agent."""
