"""The faults of a chaos run: their schedule by the seed, network faults, and messages of foreign programs."""
