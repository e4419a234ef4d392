"""What is measured, one file each: `measure` on a stage, then `verdict` and `figures`, which are pure."""
