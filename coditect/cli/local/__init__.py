"""The commands that run a private fleet on the user's machine: init, up, dev, down, doctor, chaos."""
