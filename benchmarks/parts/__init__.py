"""The measurements, one file for each part: `measure` on a stage, then `verdict` and `figures`, which are pure."""
