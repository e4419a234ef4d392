"""The registry of agents and their capabilities: interface, Redis adapter, in-memory twin, and selection of agents."""
