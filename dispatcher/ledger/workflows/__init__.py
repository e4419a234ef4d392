"""Workflows as a whole: submitted, controlled, redriven, published again, queried, removed."""
