"""The commands about goals."""
