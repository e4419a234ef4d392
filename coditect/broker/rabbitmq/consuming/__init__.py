"""Consuming: subscriptions that survive a loss of the connection, and the watch for deaf consumers."""
