"""The published JSON Schemas, and messages written as the JSON objects that they describe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pika
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.servers import ROOT

FOLDER = ROOT / "docs" / "wire"
PROPERTIES = (
    *("type", "message_id", "correlation_id", "reply_to", "expiration", "content_type", "app_id"),
    *("content_encoding", "user_id"),
)


def schema(name: str) -> dict[str, Any]:
    """One schema, by its file's name without the endings."""
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    return loaded


def names() -> list[str]:
    """Every schema that is published."""
    return sorted(path.name.removesuffix(".schema.json") for path in FOLDER.glob("*.schema.json"))


def validator(name: str) -> Draft202012Validator:
    """Checks messages of this kind."""
    resources = [(one["$id"], Resource.from_contents(one)) for one in map(schema, names())]
    return Draft202012Validator(schema(name), registry=Registry().with_resources(resources))


def complaints(name: str, message: Mapping[str, Any]) -> list[str]:
    """What is wrong with a message, in words; nothing when it fits."""
    return [f"{'/'.join(map(str, one.path))}: {one.message}" for one in validator(name).iter_errors(message)]


def as_json(properties: pika.BasicProperties, body: bytes | str) -> dict[str, Any]:
    """A message that pika received, as the schemas write it."""
    given = {name: getattr(properties, name) for name in PROPERTIES}
    return {
        "properties": {name: value for name, value in given.items() if value is not None},
        "headers": _plain(properties.headers or {}),
        "body": json.loads(body) if body else None,
    }


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _plain(one) for name, one in value.items()}
        case list():
            return [_plain(one) for one in value]
        case datetime():
            return value.isoformat()
        case bool() | None | str() | float():
            return value
        case _:
            return int(value)
