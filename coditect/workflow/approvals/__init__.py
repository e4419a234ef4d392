"""The approval policy: which tasks and approvals are approved automatically, which ask a person, and which are refused.

`policy.py` has the policy as values and judges one case by it, `schema.py` the fields of its file, and `file.py` reads
the file. The control plane judges with it, the command line checks it; nothing here does I/O but `file.py`.
"""
