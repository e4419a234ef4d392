from __future__ import annotations

import pytest

from benchmarks.parts.sides import BY_HAND, OTHERS, Side, agent_of, client_of, rotated
from benchmarks.programs.driver import BODY_BYTES, Load
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.workload import echo_agent, echo_capability

BURST = Order(Mode.BURST, 10, 100, capabilities=3)


def test_order_is_read_as_it_was_written() -> None:
    order = Order(Mode.FORGET, 1, 2, body_bytes=3, driver="module", watched={"agent": 4}, tally="folder")

    assert Order.read(order.written()) == order
    assert Order.read(order.written()).mode is Mode.FORGET


@pytest.mark.parametrize(("side", "wire"), [(Side.DIRECT, "direct"), (Side.PLAIN, "plain"), (Side.AIO_PIKA, None)])
def test_client_and_agent_of_a_side_take_the_same_wire(side: Side, wire: str | None) -> None:
    assert agent_of(side, BURST).env.get("CODITECT_WIRE") == wire
    assert client_of(side, BURST).env.get("CODITECT_WIRE") == wire


def test_agent_offers_as_many_capabilities_as_the_client_uses() -> None:
    assert agent_of(Side.DIRECT, BURST).env["BENCH_CAPABILITIES"] == "3"
    assert [one.name for one in echo_agent(3).capabilities] == [echo_capability(number) for number in range(3)]


def test_tasks_without_results_are_counted() -> None:
    assert agent_of(Side.DIRECT, BURST).argv[-1].endswith(":echoer")
    assert agent_of(Side.DIRECT, Order(Mode.FORGET, 1, 1)).argv[-1].endswith(":counter")


def test_each_side_has_a_driver_of_its_own_but_both_wires_share_ours() -> None:
    drivers = [Order.read(client_of(side, BURST).argv[-1]).driver for side in Side]

    assert len(drivers) == len({*BY_HAND, *OTHERS})
    assert drivers[0] == drivers[1]
    assert len(set(drivers)) == len(drivers) - 1


def test_another_side_goes_first_in_each_round() -> None:
    assert [rotated(BY_HAND, number)[0] for number in range(4)] == [*BY_HAND, BY_HAND[0]]
    assert sorted(rotated(BY_HAND, 2)) == sorted(BY_HAND)


@pytest.mark.parametrize("size", [0, 1, 44, 45, 46, BODY_BYTES, 256_000])
def test_load_has_the_size_that_was_asked_for(size: int) -> None:
    assert len(Load(size).text.encode()) == size
