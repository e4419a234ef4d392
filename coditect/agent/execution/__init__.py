"""The execution of a task: its handler on the event loop, in a thread or in a process, within its limits."""
