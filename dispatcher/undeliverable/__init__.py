"""Tasks that no queue took or that were given up: their publishers are answered."""
