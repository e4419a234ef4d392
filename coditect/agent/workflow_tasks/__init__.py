"""Tasks that a workflow owns: asking its shard whether they may run, telling that they run, and how they end."""
