"""Use cases for workflow patterns (workflows with parameters), without servers: find, describe and render them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coditect.workflow.definition import Definition
from coditect.workflow.patterns.catalogue import find_pattern, load_patterns
from coditect.workflow.patterns.pattern import WorkflowPattern
from coditect.workflow.patterns.rendering import render_pattern


def list_patterns(folders: Sequence[Path] = ()) -> list[WorkflowPattern]:
    """Return the packaged patterns and those of folders, in order of their names.

    Raises:
        NotFound: when a folder cannot be read.
        InputError: when a file is no pattern; not retryable.
    """
    return list(load_patterns(folders).values())


def show_pattern(name: str, folders: Sequence[Path] = ()) -> WorkflowPattern:
    """Return a pattern by its name.

    Raises:
        NotFound: when no pattern has the name.
    """
    return find_pattern(load_patterns(folders), name)


def make_workflow(name: str, given: Mapping[str, object], folders: Sequence[Path] = ()) -> Definition:
    """Return the checked workflow that a workflow pattern becomes with the given values of its parameters.

    Raises:
        NotFound: when no pattern has the name.
        InputError: when parameters do not fit; not retryable.
        InvalidWorkflow: when what comes out is no valid workflow.
    """
    return render_pattern(load_patterns(folders), name, given)
