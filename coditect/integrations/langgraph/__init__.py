"""LangGraph over the fleet: checkpoints of graphs in the shared state, and nodes that submit tasks.

A graph compiled with a `CoditectSaver` continues in any process; a node by `task_node` is done by an agent. The package
needs the extra `langgraph`.
"""

from __future__ import annotations

from coditect.errors import missing_extra

try:
    from coditect.integrations.langgraph.node import task_node
    from coditect.integrations.langgraph.saver import CoditectSaver
except ImportError as _missing:
    raise missing_extra("langgraph") from _missing

__all__ = ["CoditectSaver", "task_node"]
