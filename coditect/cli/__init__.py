"""The command line: one file per noun. Heavy libraries load inside the command that needs them."""
