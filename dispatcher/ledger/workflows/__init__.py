"""Workflows as a whole: submitted, controlled, redriven, published again, recovered, queried, removed."""
