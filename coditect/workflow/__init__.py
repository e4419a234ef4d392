"""A workflow as a value: what it is, how it is written down, what follows from its nodes' states, how it is drawn."""
