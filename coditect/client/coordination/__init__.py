"""The client's side of breakers, locks and schedules: requests to the control plane, and their answers as values."""
