"""The load of a chaos run: what is drawn, how clients start and steer it, and the agents that execute it."""
