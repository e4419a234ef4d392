"""Settlement: decide what follows from the end of an attempt, publish it, then acknowledge the delivery."""
