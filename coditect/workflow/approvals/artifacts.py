"""The artifacts that an approval requires before anybody is asked: expressions that must each find something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.workflow.expressions import Account, Scope, evaluate, holds

MOST_SHOWN = 200
"""The most characters of an artifact's value that the audit trail keeps."""


def artifacts_of(required: Mapping[str, str], scope: Scope, account: Account) -> dict[str, Any]:
    """Evaluate the expression of each required artifact, and return the results by the artifacts' names.

    Raises:
        InvalidWorkflow: when an expression fails or takes too many steps.
    """
    document = scope.document()
    return {name: evaluate(text, document, account) for name, text in required.items()}


def missing(found: Mapping[str, Any]) -> list[str]:
    """Return the names of the artifacts that are null, false or empty."""
    return [name for name, value in found.items() if not holds(value)]
