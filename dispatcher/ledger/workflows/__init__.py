"""Whole workflows in the ledger: submitted, controlled, redriven, published again, queried and removed."""
