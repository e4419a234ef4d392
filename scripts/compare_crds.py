"""Compares the definitions of `k8s/crds` with those that operators publish, field by field of ours.

    python scripts/compare_crds.py PUBLISHED.yaml ...

The files are those in which an operator's repository has its CustomResourceDefinitions. It prints each difference and
the number of fields, and fails when a field differs, is not published, or a definition is in none of the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent.parent / "k8s" / "crds"
CHECKED = (
    "type", "format", "enum", "pattern", "required", "default", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "nullable", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
)  # fmt: skip


def definitions(files: Iterable[Path]) -> dict[str, Any]:
    """Return the schema of `spec` of each version of each definition, by `name version`."""
    found = [
        document for file in files for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document
    ]
    return {
        f"{document['metadata']['name']} {version['name']}": version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        for document in found
        if document.get("kind") == "CustomResourceDefinition"
        for version in document["spec"]["versions"]
    }


def fields(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the fields below a schema by their paths; `[]` stands for the items of a list or map."""
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}", below
        yield from fields(below, f"{path}.{name}")
    for of in ("items", "additionalProperties"):
        if of in schema:
            yield f"{path}[]", schema[of]
            yield from fields(schema[of], f"{path}[]")


def differences(ours: dict[str, Any], published: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each difference of a field of ours from the published one."""
    for name in sorted(ours):
        if name not in published:
            yield f"{name}: not published"
            continue
        theirs = {"spec": published[name], **dict(fields(published[name], "spec"))}
        for path, field in [("spec", ours[name]), *fields(ours[name], "spec")]:
            if path not in theirs:
                yield f"{name} {path}: not published"
                continue
            for key in CHECKED:
                mine, other = (_unordered(key, schema.get(key)) for schema in (field, theirs[path]))
                if mine != other:
                    yield f"{name} {path}: {key} is {mine!r}, published {other!r}"


def _unordered(key: str, value: Any) -> Any:
    return sorted(value) if key in ("enum", "required") and value is not None else value


def main(words: list[str]) -> int:
    """Compare and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", nargs="+", type=Path, help="a file with CustomResourceDefinitions of an operator")
    parser.add_argument("--ours", type=Path, default=FOLDER, help="the folder of the definitions to compare")
    options = parser.parse_args(words)
    ours = definitions(sorted(options.ours.glob("*.yaml")))
    found = list(differences(ours, definitions(options.published)))
    for line in found:
        print(line)
    count = sum(not path.endswith("[]") for definition in ours.values() for path, _ in fields(definition, "spec"))
    print(f"fields: {count}, differences: {len(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
