"""The comparison of our definitions of the operators' objects with published ones."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers import ROOT

COMPARE = runpy.run_path(str(ROOT / "scripts" / "compare_crds.py"))
MODE = {"type": "string", "enum": ["soft", "hard"], "default": "soft"}
NAMES = {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}}
OURS: dict[str, Any] = {"type": "object", "required": ["mode"], "properties": {"mode": MODE, "names": NAMES}}
MORE = {"mode": MODE | {"enum": ["hard", "soft"], "description": "How hard it is."}, "more": {"type": "integer"}}
PUBLISHED: dict[str, Any] = {**OURS, "properties": {**OURS["properties"], **MORE}}


def write(file: Path, spec: dict[str, Any]) -> Path:
    version = {"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}}
    definition = {"kind": "CustomResourceDefinition", "metadata": {"name": "apples"}, "spec": {"versions": [version]}}
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(definition))
    return file


def compare(folder: Path, published: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    ours = write(folder / "ours" / "apples.yaml", OURS).parent
    code: int = COMPARE["main"](["--ours", str(ours), str(write(folder / "published.yaml", published))])
    return code, capsys.readouterr().out.splitlines()


def test_published_definition_with_more_fields_is_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(tmp_path, PUBLISHED, capsys) == (0, ["fields: 2, differences: 0"])


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"mode": MODE | {"default": "hard"}}, "spec.mode: default is 'soft', published 'hard'"),
        ({"mode": MODE | {"enum": ["hard"]}}, "spec.mode: enum is ['hard', 'soft'], published ['hard']"),
        ({"names": NAMES | {"items": {"type": "string"}}}, "spec.names[]: pattern is '^[a-z]+$', published None"),
    ],
)
def test_field_that_differs_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], line: str
) -> None:
    properties = {**PUBLISHED["properties"], **changed}

    assert compare(tmp_path, PUBLISHED | {"properties": properties}, capsys) == (
        1,
        [f"apples v1 {line}", "fields: 2, differences: 1"],
    )


def test_field_that_is_not_published_or_whose_like_is_required_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = PUBLISHED | {"required": ["mode", "more"], "properties": MORE}

    assert compare(tmp_path, published, capsys) == (
        1,
        [
            "apples v1 spec: required is ['mode'], published ['mode', 'more']",
            "apples v1 spec.names: not published",
            "apples v1 spec.names[]: not published",
            "fields: 2, differences: 3",
        ],
    )
