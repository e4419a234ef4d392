"""Who is there and what they can do: port, Redis adapter, in-memory twin, and the selection of one agent."""
