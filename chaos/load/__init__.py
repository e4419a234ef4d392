"""The load of a chaos run: its random work, the clients that start and control it, and the agents that execute it."""
