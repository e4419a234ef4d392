"""What heals a service on this machine: evidence of its state, causes that explain it, and remedies for them."""
