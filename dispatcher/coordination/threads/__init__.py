"""Threads: conversations of agents and people, whose messages are kept in order until their retention is over."""
