"""Commands that look at a living fleet as a whole."""
