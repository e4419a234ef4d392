"""The checkpoints of a workflow, and the restore of the workflow to one of them."""
