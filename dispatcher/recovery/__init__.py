"""What is made again after a loss: of the broker, of the graph, of a task that nobody speaks of."""
