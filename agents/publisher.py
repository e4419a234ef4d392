"""The agent that publishes releases: folders of pages with a manifest, which appear whole or not at all.

The release is keyed by the task's id. A task that is executed again, after a fault or beside itself, finds its own
release and answers as the first time; another task never replaces a release that is there.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agents.tools.site import LONGEST_TITLE, build_site
from agents.tools.sources import confined
from coditect import Agent, Context, Retry
from coditect.errors import InputError

publisher = Agent("publisher", version="1.0.0", slots=4, tags=frozenset({"release"}))

MANIFEST = "release.json"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Page(BaseModel):
    """A page of a release: file name and text."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=_NAME, description="the file's name; no folders")
    text: str


class ReleaseRequest(BaseModel):
    """A request to publish pages as a release in a folder."""

    model_config = ConfigDict(extra="forbid")

    folder: str = Field(min_length=1, description="where releases are put, in the fleet's folder; made if missing")
    name: str = Field("", pattern=rf"^$|{_NAME}", description="the release's own folder in it; default: after the task")
    pages: list[Page] = Field(max_length=1_000)
    facts: dict[str, Any] = Field({}, description="what the manifest is to say beside the files")

    @model_validator(mode="after")
    def _names_once(self) -> ReleaseRequest:
        names = [page.name for page in self.pages]
        if len({name.lower() for name in [*names, MANIFEST]}) <= len(names):
            raise ValueError(f"each page needs a name of its own, and none is {MANIFEST}")
        return self


class Release(BaseModel):
    """A published release, as its manifest file records it."""

    task_id: str
    """The id of the task that published the release, which makes a repetition idempotent."""

    name: str
    files: dict[str, str]
    """The SHA-256 hash of each file, by file name."""

    facts: dict[str, Any]


class SitePage(BaseModel):
    """A page of a site: its title, its text in Markdown, and what its writer did not find."""

    model_config = ConfigDict(extra="ignore")  # the results of writers have more fields

    title: str = Field(min_length=1, max_length=LONGEST_TITLE)
    markdown: str
    missing: list[str] = []


class SiteRequest(BaseModel):
    """A request to merge pages in Markdown into a site."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=1, max_length=LONGEST_TITLE)
    pages: list[SitePage] = Field(min_length=1, max_length=200)


@publisher.capability(
    "site.build", timeout="1m", description="Merges pages in Markdown into a static site.", tags=frozenset({"docs"})
)
def build(task: SiteRequest) -> list[Page]:
    """Return the files of a site, ready for `release.publish`; the same pages give the same files."""
    missing = {page.title: page.missing for page in task.pages if page.missing}
    files = build_site(task.title, [(page.title, page.markdown) for page in task.pages], missing=missing)
    return [Page(name=name, text=text) for name, text in files.items()]


@publisher.capability(
    "release.publish",
    timeout="1m",
    retry=Retry(max_attempts=3, first="1s", cap="1m"),
    description="Writes files: a release folder of pages and a manifest. Idempotent by the task's id.",
    tags=frozenset({"release"}),
    cost=1.0,
)
def publish(task: ReleaseRequest, ctx: Context) -> Release:
    """Publish a release exactly once per task id, however often the task is executed.

    A rename puts the whole release in place.

    Raises:
        InputError: not retryable; a release of this name is there already, made by another task.
        OSError: retryable; the folder cannot be written.
    """
    name = task.name or re.sub(r"[^A-Za-z0-9._-]", "-", f"release-{ctx.task_id}")
    place = Path(confined(task.folder)) / name
    release = Release(
        task_id=ctx.task_id,
        name=name,
        files={page.name: sha256(page.text.encode()).hexdigest() for page in task.pages},
        facts=task.facts,
    )
    if not place.exists():
        _put(place, task, release)
    return _made_by(ctx.task_id, place)


def _put(place: Path, task: ReleaseRequest, release: Release) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name[:80]}-", dir=place.parent))
    try:
        for page in task.pages:
            (draft / page.name).write_text(page.text, encoding="utf-8", newline="")
        (draft / MANIFEST).write_text(release.model_dump_json(indent=2) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        draft.rename(place)
    except OSError:
        if not place.exists():
            raise  # nobody was faster: it is the folder's own trouble
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _made_by(task_id: str, place: Path) -> Release:
    """Return the release in a folder if this task published it, in this attempt or an earlier one; else raise an error.

    Raises:
        InputError: not retryable; another task made it.
    """
    try:
        found = Release.model_validate_json((place / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        found = None
    if found is None or found.task_id != task_id:
        raise InputError(
            "a release of this name is there already; choose another name",
            folder=str(place),
            made_by=found.task_id if found else "an unknown author without a manifest",
        )
    return found
