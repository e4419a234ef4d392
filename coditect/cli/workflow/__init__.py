"""`coditect workflow`: check, draw, run, show and control workflows."""
