"""The control plane: a process beside the agents, one file per verb.

`notices` answers for tasks that nobody ran. `program` puts the process together.
"""

from dispatcher.program import running_dispatcher

__all__ = ["running_dispatcher"]
