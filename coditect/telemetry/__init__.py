"""What the outside sees of us: logs. Every name in one place."""
