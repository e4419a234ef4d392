"""Workflows as a whole: submitted, steered, redriven, published again, looked at, removed."""
