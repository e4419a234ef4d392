"""Which queues' consumers a process remembers between its rounds of bindings."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from coditect.broker.rabbitmq import declare as rare
from coditect.broker.rabbitmq.declare import Entities
from coditect.broker.topology import Binding, Queue, Topology

CONNECTION: Any = None


async def test_consumers_are_remembered_only_of_queues_with_a_binding_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def declare(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(rare, "declare", declare)
    entities = Entities(only_check=False)
    shared = Topology(queues=(Queue("shared"),), bindings=(Binding("here", "shared"),))
    await entities.declare(CONNECTION, shared, lazily=False)

    for _ in range(100):
        await entities.bind(CONNECTION, {f"agent.{uuid4().hex}.mail": 1, "shared": 3})
    remembered = dict(entities._consumers)
    entities.forget_queue("shared")

    assert remembered == {"shared": 3}
    assert entities._consumers == {}
