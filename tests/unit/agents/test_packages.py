"""Which packages there are: folders with an `__init__.py`, at and below the roots."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.reviewer import PackagesRequest, packages
from coditect.errors import InputError


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("shop", "shop/till", "shop/till/.cache", "shop/build", "tools/lint", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("shop", "shop/till", "shop/till/.cache", "shop/build", "tools/lint"):
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)


def test_packages_are_found_once_and_what_is_not_ours_is_left_out() -> None:
    assert packages(PackagesRequest(roots=["tools", "shop", "shop/till"])) == ["shop", "shop/till", "tools/lint"]


@pytest.mark.parametrize("roots", [["shop", "nowhere"], ["docs"]])
def test_roots_without_a_package_are_refused(roots: list[str]) -> None:
    with pytest.raises(InputError):
        packages(PackagesRequest(roots=roots))
