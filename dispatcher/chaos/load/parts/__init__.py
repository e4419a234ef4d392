"""The further parts of a chaos run's load, a module each: what its agents offer, and what its client does."""
