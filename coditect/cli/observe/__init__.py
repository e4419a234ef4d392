"""Commands that look at a living fleet as a whole, and what the shell completes from it."""
