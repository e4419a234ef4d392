"""The tables of docs/operations.md#settings, made from the declarations in `coditect.settings.settings`.

``python -m tests.docs.settings_table`` writes them again.
"""

from __future__ import annotations

from coditect.settings.declaration import Group, Setting
from coditect.settings.settings import DECLARED, SET_BY_PROGRAMS
from tests.servers import ROOT

PAGE = ROOT / "docs" / "operations.md"
BEGIN = "<!-- made by tests/docs/settings_table.py: begin -->"
END = "<!-- made by tests/docs/settings_table.py: end -->"
HEAD = "| variable | default | range | meaning |\n|---|---|---|---|\n"
OTHERS = """Operators meet the next settings, and experts those from `{first}` on.

"""
SET = """Programs set these variables for the processes that they start:

| variable | meaning |
|---|---|
"""


def settings_by_variable() -> dict[str, Setting]:
    """Every setting by its variable, in the order of the declarations."""
    return {setting.variable: setting for kind in DECLARED for _, setting in kind.variables()}


def written(page: str) -> str:
    """The page with its tables made again."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    settings = settings_by_variable().values()
    groups = {group: [setting for setting in settings if setting.group is group] for group in Group}
    others = groups[Group.OPERATOR] + groups[Group.EXPERT]
    tables = [
        HEAD + _rows(groups[Group.USER]),
        OTHERS.format(first=groups[Group.EXPERT][0].variable) + HEAD + _rows(others),
        SET + "\n".join(f"| `{variable}` | {text} |" for variable, text in SET_BY_PROGRAMS.items()),
    ]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(tables) + f"\n\n{END}{after}"


def _rows(settings: list[Setting]) -> str:
    return "\n".join(
        f"| `{setting.variable}` | {setting.default} | {setting.kind.range} | {setting.help} |" for setting in settings
    )


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
