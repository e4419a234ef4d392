"""The tables of options in the docs, made from their declarations.

``python -m tests.docs.option_tables`` writes them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coditect.client.options import TaskOptions
from coditect.client.webhooks import WebhookOptions
from coditect.collaboration.locks import GrantedLockOptions, RenewedLockOptions
from coditect.collaboration.threads import ThreadOptions
from coditect.model.option import Option, options_of
from coditect.workflow.starters import ScheduleOptions, TriggerOptions
from tests.servers import ROOT

SPECS: dict[Path, tuple[type, ...]] = {
    ROOT / "docs" / "schedules.md": (ScheduleOptions,),
    ROOT / "docs" / "triggers.md": (TriggerOptions,),
    ROOT / "docs" / "locks.md": (RenewedLockOptions, GrantedLockOptions),
    ROOT / "docs" / "threads.md": (ThreadOptions,),
    ROOT / "docs" / "api.md": (WebhookOptions,),
    ROOT / "docs" / "cli.md": (TaskOptions,),
}
BEGIN = "<!-- made by tests/docs/option_tables.py: begin -->"
END = "<!-- made by tests/docs/option_tables.py: end -->"


def row(name: str, kind: Any, option: Option) -> str:
    """The row of one option."""
    default = {None: "", "": "", False: "no", True: "yes"}.get(option.default, f"`{option.default}`")
    limits = option.range(kind)
    meaning = option.help + (f" {limits.capitalize()}." if limits else "")
    flag = f"--no-{name}" if option.default is True else f"--{name.replace('_', '-')}"
    return f"| `{flag}`, `{name}` | {default} | {meaning} |"


def written(page: Path) -> str:
    """The page with its tables made again."""
    text, *parts = page.read_text(encoding="utf-8").split(BEGIN)
    for spec, part in zip(SPECS[page], parts, strict=True):
        rows = "\n".join(row(name, kind, option) for name, (kind, option) in options_of(spec).items())
        text += f"{BEGIN}\n\n| option | default | meaning |\n|---|---|---|\n{rows}\n\n{END}{part.partition(END)[2]}"
    return text


if __name__ == "__main__":
    for option_page in SPECS:
        option_page.write_text(written(option_page), encoding="utf-8")
