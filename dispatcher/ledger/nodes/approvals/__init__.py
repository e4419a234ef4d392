"""The approvals of nodes: the policy's judgement of a node, the question to a person, and the recorded decision."""
