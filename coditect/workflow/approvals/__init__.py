"""The approval policy: which tasks and approvals are approved automatically, which ask a person, and which are refused.

`policy` has the policy as values and judges one case by it, `file` reads the file, `signing` signs answers. The control
plane judges with it, the command line checks it; nothing here does I/O but `file`.
"""
