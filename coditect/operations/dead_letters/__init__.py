"""The dead letters of direct tasks: how they are read from their queues, listed, redriven and discarded."""
