"""The command line, with one module for each noun; a heavy library loads only in the command that needs it."""
