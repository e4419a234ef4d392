"""What an agent learns of its tasks by the features of their inputs, and what is expected by that."""

from __future__ import annotations

import random
from typing import Any

import pytest

from coditect.model.prediction import BASE, MOST_WEIGHTS, SIZE, Predictor, features_of, predict

CAPABILITY = "page.render"


def learned(predictor: Predictor, tasks: list[tuple[dict[str, Any], float, bool]], *names: str) -> None:
    for number, (page, ms, completed) in enumerate(tasks):
        features = features_of(names, page, 100)
        predictor.learn(CAPABILITY, features, ms, completed=completed, now_ms=100 * number)


def test_features_are_texts_as_they_are_and_sizes_of_numbers_and_lists() -> None:
    page = {"language": "ada" * 20, "deep": True, "options": {"depth": 255}, "files": ["a"] * 15, "none": None}

    features = features_of(["language", "deep", "options.depth", "files", "none", "options.absent.x"], page, 15)

    assert features == (
        (BASE, 1.0),
        (SIZE, 0.0),
        ("language=" + "ada" * 13 + "a", 1.0),
        ("deep=true", 1.0),
        ("options.depth", 1.0),
        ("files", 0.0),
        ("none=null", 1.0),
        ("options.absent.x=null", 1.0),
    )


@pytest.mark.parametrize("document", [None, 5, "text", [1], {"language": 10**400}])
def test_any_input_has_features(document: Any) -> None:
    assert len(features_of(["language"], document, 1)) == 3


def test_factors_of_features_are_learned_apart_and_explained() -> None:
    chance, predictor = random.Random(3), Predictor()
    tasks = []
    for _ in range(400):
        page = {"language": chance.choice("abc"), "pages": 2 ** chance.randrange(8)}
        ms = 50 * (8 if page["language"] == "c" else 1) * page["pages"] * chance.lognormvariate(0, 0.1)
        tasks.append((page, ms, page["language"] != "b" or chance.random() < 0.3))
    learned(predictor, tasks, "language", "pages")

    def found(language: str, pages: int) -> Any:
        features = features_of(["language", "pages"], {"language": language, "pages": pages}, 100)
        return predict(predictor.weights(40_000), CAPABILITY, features)

    assert found("a", 4).ran_ms == pytest.approx(200, rel=0.3)
    assert found("c", 64).ran_ms == pytest.approx(50 * 8 * 64, rel=0.3)
    assert found("b", 16).success < 0.7
    assert found("a", 16).success > 0.9
    factors = dict(found("c", 64).factors)
    assert factors["language=c"] > 3 * dict(found("a", 64).factors)["language=a"]
    assert "language=c x" in found("c", 64).why


def test_weights_are_bounded_and_an_unknown_capability_has_no_prediction() -> None:
    predictor = Predictor()
    learned(predictor, [({"a": "b"}, 5, True)], "a")

    assert predict(predictor.weights(0), "page.other", features_of(["a"], {}, 1)) is None

    predictor = Predictor()
    learned(predictor, [({"id": str(number)}, 1e12, True) for number in range(1_000)], "id")

    assert len(predictor.weights(0)) == MOST_WEIGHTS + 1  # and the base
    assert predict(predictor.weights(0), CAPABILITY, features_of(["id"], {"id": "999"}, 2**60)) is not None


def test_change_is_soon_believed_and_failures_are_forgiven() -> None:
    predictor = Predictor()
    learned(predictor, [({}, 1_000, False)] * 100)
    features = features_of([], {}, 100)

    def found(now_ms: int) -> Any:
        return predict(predictor.weights(now_ms), CAPABILITY, features)

    assert found(10_000).success < 0.3
    assert found(130_000).success > 0.9
    for number in range(5):
        predictor.learn(CAPABILITY, features, 10, completed=True, now_ms=140_000 + number)
    assert found(141_000).ran_ms < 100


def test_features_without_end_do_not_make_an_agent_untried_at_its_other_capabilities() -> None:
    predictor = Predictor()
    predictor.learn("page.print", features_of([], {}, 100), 500, completed=True, now_ms=0)
    learned(predictor, [({"id": str(number)}, 10, True) for number in range(200)], "id")

    found = predict(predictor.weights(20_000), "page.print", features_of([], {}, 100))

    assert found is not None
    assert found.ran_ms > 100
