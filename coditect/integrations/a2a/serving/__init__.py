"""The fleet as an A2A agent: its card, and clients' messages, which start durable tasks or answer their approvals.

`endpoints` is what the API routes to, `requests` the SDK's port for a server's requests. `orders` reads messages,
`reading` and `listing` ask the control plane for tasks, which `tasks` puts into A2A's words.
"""
