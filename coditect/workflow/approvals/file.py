"""The reader of an approval policy's file, in YAML or JSON."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from coditect.errors import InputError, NotFound
from coditect.workflow.approvals.policy import ApprovalPolicy
from coditect.workflow.approvals.schema import PolicyFields
from coditect.workflow.documents.file import parse_document

MOST_BYTES = 1_000_000
MOST_TOLD = 10


def load_policy(path: Path | str) -> ApprovalPolicy:
    """Read and check the approval policy in a file: JSON when its name ends in `.json`, else YAML.

    Raises:
        NotFound: when the file cannot be read.
        InputError: with the places of up to ten problems; not retryable.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # no path has a null byte
        fix = "give the policy's file: CODITECT_APPROVAL_POLICY"
        raise NotFound("There is no such policy to read", path=str(path), reason=str(error), fix=fix) from error
    return read_policy(content, is_json=path.suffix == ".json", name=str(path))


def read_policy(content: bytes, *, is_json: bool = False, name: str = "") -> ApprovalPolicy:
    """Read and check an approval policy in the bytes of a YAML or JSON document.

    Raises:
        InputError: with the places of up to ten problems; not retryable.
    """
    if len(content) > MOST_BYTES:
        raise InputError("A policy is at most so large", path=name, most_bytes=MOST_BYTES, fix="write fewer rules")
    document = parse_document(content, is_json=is_json)
    try:
        found = PolicyFields.model_validate(document)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc'])) or 'the policy'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors(include_url=False)[:MOST_TOLD]
        ]
        fix = "correct it; the fields are in docs/approvals.md"
        raise InputError("This is no approval policy", path=name, problems=problems, fix=fix) from error
    return found.policy(hashlib.sha256(content).hexdigest()[:12])
