"""The faults: their schedule by the seed, those of the network, and the messages of strangers."""
