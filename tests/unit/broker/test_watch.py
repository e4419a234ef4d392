"""Which consumers are looked at in which round."""

from __future__ import annotations

from collections import Counter

import pytest

from coditect.broker.rabbitmq.consuming import CHECK_ROUNDS, FEW_CONSUMERS, due


@pytest.mark.parametrize("many", [0, 1, FEW_CONSUMERS])
def test_few_consumers_are_looked_at_in_every_round(many: int) -> None:
    assert list(due(range(many), 7)) == list(range(many))


@pytest.mark.parametrize("many", [FEW_CONSUMERS + 1, 40, 3_000])
def test_each_of_many_is_looked_at_once_in_three_rounds(many: int) -> None:
    rounds = [due(range(many), number) for number in range(5, 5 + CHECK_ROUNDS)]

    assert Counter(one for looked_at in rounds for one in looked_at) == dict.fromkeys(range(many), 1)
    assert max(map(len, rounds)) <= many // CHECK_ROUNDS + 1
