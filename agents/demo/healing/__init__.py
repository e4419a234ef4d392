"""The healing demo: a small service meets real faults, and a fleet mends it without a person."""
