"""A remote A2A agent whose skills are capabilities of the fleet.

`declaration` makes the agent of the fleet, `agent` has the remote one's card and connections, `calling` follows one
message to the end of its task, and `transport` connects to allowed addresses only.
"""
