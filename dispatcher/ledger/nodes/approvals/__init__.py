"""The approvals of nodes: what the policy says of a node, the question to a person, and what was decided."""
