"""The commands for a private fleet on the user's machine: init, up, dev, down, doctor."""
