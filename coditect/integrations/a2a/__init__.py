"""The Agent2Agent protocol (A2A) both ways: the fleet as an A2A agent, and a remote agent's skills as capabilities.

`serving` answers A2A clients, by the routes of the API; `remote` makes an agent of the fleet of any A2A agent.
`messages` is what both exchange. The package needs the extra `a2a`.
"""
