"""The processes of an agent: worker processes that run handlers, and copies of the whole agent."""
