"""A repository as a reader finds it: names in languages other than Python, README, manifests, settings and files.

Nothing is run, and no language is parsed as a whole: a line that declares something public is found by its form, and
the comment above it says what the thing does. Python has its own reader, `markdown.py`.

A repository may be a stranger's, and what is read of it is published: no link out of it is followed, and no line is
longer for a regular expression than `_MOST_LINE`, whose backtracking would stop the agent otherwise.
"""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from agents.tools.sources import MAX_FILE_BYTES, MAX_FILES, SourceFile, is_ours, list_sources
from coditect.errors import InputError

_LANGUAGES: Mapping[str, tuple[str, str]] = {
    "JavaScript": (
        ".js .mjs .cjs .jsx .ts .tsx",
        r"export\s+(?:default\s+)?(?:declare\s+)?(?:abstract\s+)?(?:async\s+)?"
        r"(?:function\*?|class|const|let|var|interface|type|enum)\s+(?P<name>[\w$]+)"
        r"|(?:module\.)?exports\.(?P<other>[\w$]+)\s*="
        r"|module\.exports\s*=\s*(?:async\s+)?(?:function\*?|class)\s+(?P<whole>[\w$]+)"
        r"|[\w$]+(?:\.prototype)?\.(?P<member>[\w$]+)\s*=\s*(?:async\s+)?function\b",
    ),
    "Go": (".go", r"(?:func\s+(?:\([^)]*\)\s*)?|type\s+|var\s+|const\s+)(?P<name>[A-Z]\w*)"),
    "Rust": (
        ".rs",
        r"\s*pub\s+(?:async\s+|unsafe\s+)*(?:const\s+fn|fn|struct|enum|trait|type|const|static)\s+(?P<name>\w+)",
    ),
    "Java": (
        ".java .cs",
        r"\s*public\s+(?:[\w<>\[\],.?]+\s+)*(?P<name>[A-Za-z]\w*)\s*(?:\(|\{|<|extends\b|implements\b|:|$)",
    ),
    "Kotlin": (
        ".kt .swift",
        r"\s*(?:(?:public|open|data|sealed|abstract|suspend|inline|override|final|static)\s+)*"
        r"(?:fun|func|class|interface|object|struct|protocol|enum)\s+(?P<name>[A-Za-z]\w*)",
    ),
    "C": (
        ".h .hpp",
        r"(?:(?:struct|class|enum)\s+(?P<name>\w+)\s*(?:[:{].*)?"
        r"|(?!static\b|typedef\b|return\b|else\b)[A-Za-z_][\w\s*&:<>,]*?[\s*&](?P<other>\w+)\s*\([^;{}]*\)[^;{}]*;)\s*$",
    ),
    "Ruby": (".rb", r"\s*(?:def\s+(?:self\.)?|class\s+|module\s+)(?P<name>[A-Za-z]\w*[?!]?)"),
    "PHP": (
        ".php",
        r"\s*(?:(?:public|abstract|final|static)\s+)*(?:function|class|interface|trait)\s+(?P<name>[A-Za-z]\w*)",
    ),
    "shell": (".sh .bash", r"(?:function\s+)?(?P<name>[A-Za-z][\w-]*)\s*\(\)"),
}
_DECLARATIONS = {
    suffix: (language, re.compile(pattern))
    for language, (suffixes, pattern) in _LANGUAGES.items()
    for suffix in suffixes.split()
}
_COMMENT = re.compile(r"\s*(?:///?!?|/\*\*?|\*/|\*|#(?![\[!]))\s?(.*?)(?:\s*\*/)?\s*$")
_BETWEEN = re.compile(r"\s*(?:@|#\[)")
"""A line that may stand between a comment and what it is about: a decorator or an attribute."""
_TESTS = re.compile(r"_test\.go$|\.(?:test|spec)\.[jt]sx?$|Tests?\.(?:java|kt|cs)$|\.min\.js$|\.d\.ts$")
_SETTING = re.compile(
    r"process\.env\.(\w+)|process\.env\[['\"](\w+)|os\.(?:Getenv|LookupEnv)\(\"(\w+)|env::var(?:_os)?\(\"(\w+)"
    r"|System\.getenv\(\"(\w+)|\bENV(?:\.fetch\(|\[)['\"](\w+)|\bgetenv\(['\"](\w+)"
)
MANIFESTS = ("pyproject.toml", "setup.cfg", "setup.py", "package.json", "go.mod", "Cargo.toml", "composer.json")
_OTHER_MANIFESTS = ("requirements*.txt", "pom.xml", "build.gradle*", "Gemfile", "*.csproj", "CMakeLists.txt")
_DEPLOYED = (
    "Dockerfile", "*/Dockerfile", "Containerfile", "compose.y*ml", "docker-compose.y*ml", "k8s/*.y*ml", "k8s/*/*.y*ml",
    "kubernetes/*.y*ml", "deploy/*", "charts/*/Chart.yaml", "helm/Chart.yaml", "Procfile", "fly.toml", "Makefile",
    "systemd/*.service", "*.service", "*.tf", ".env.example", ".github/workflows/*.y*ml", ".gitlab-ci.yml",
)  # fmt: skip
_TARGET = re.compile(r"^(?P<name>[a-z][\w-]*):(?!=)[^#\n]*(?:##[ \t]*(?P<text>.*))?$", re.MULTILINE)
_VARIABLE = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Z][A-Z0-9_]*)=", re.MULTILINE)
_PORTS = re.compile(r"^[ \t]*EXPOSE[ \t]+(.+)$", re.MULTILINE | re.IGNORECASE)
_USE = re.compile(r"usage|install|getting started|quick.?start|example|how to", re.IGNORECASE)
_NO_PROSE = re.compile(r"^[ \t]*(?:<|\[!\[|!\[).*\n", re.MULTILINE)
"""Pictures, badges and HTML."""
_MOST_README = 6_000
_MOST_LINE = 1_000


@dataclass(frozen=True, slots=True)
class Declared:
    """A public name of a file: the line that declares it, and what the comment above it says."""

    name: str
    line: str
    text: str


@dataclass(frozen=True, slots=True)
class Outline:
    """The public names of a file in another language than Python, and the settings that it reads."""

    name: str
    language: str
    suffix: str
    declared: list[Declared]
    settings: set[str]


@dataclass(frozen=True, slots=True)
class Project:
    """The facts of a project's manifest that an operator needs, such as its name and its commands."""

    name: str
    manifest: str = ""
    runtime: str = ""
    dependencies: list[str] = field(default_factory=list)
    extras: dict[str, list[str]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)


def outlines(root: Path) -> tuple[list[Outline], list[str]]:
    """Return the outlines of a folder's files in languages other than Python that declare or read something.

    The second list has a line for each file that is left out.
    """
    files = sorted(file for file in root.rglob("*") if file.suffix in _DECLARATIONS and _is_source(root, file))
    found = list[Outline]()
    left_out = [f"{file.name}: there are more than {MAX_FILES} files" for file in files[MAX_FILES:]]
    for file in files[:MAX_FILES]:
        name = str(file.relative_to(root))
        if file.stat().st_size > MAX_FILE_BYTES:
            left_out.append(f"{name}: larger than {MAX_FILE_BYTES} bytes")
            continue
        text = _cut(_text(root, name))
        language, declaration = _DECLARATIONS[file.suffix]
        settings = {next(filter(None, names)) for names in _SETTING.findall(text)}
        declared = [*_declared(text.splitlines(), declaration)]
        if declared or settings:
            found.append(Outline(name, language, file.suffix[1:], declared, settings))
    return found, left_out


def _is_source(root: Path, file: Path) -> bool:
    return is_ours(file.relative_to(root), for_users=True) and not _TESTS.search(file.name) and _is_inside(root, file)


def _declared(lines: list[str], declaration: re.Pattern[str]) -> Iterator[Declared]:
    seen = set[str]()
    for number, line in enumerate(lines):
        found = declaration.match(line)
        if found is None:
            continue
        name = next(filter(None, found.groups()))
        if name not in seen:
            seen.add(name)
            yield Declared(name, line.strip().removesuffix("{").rstrip()[:200], _comment_above(lines, number))


def _comment_above(lines: list[str], number: int) -> str:
    while number > 0 and _BETWEEN.match(lines[number - 1]):
        number -= 1
    if number > 1 and not lines[number - 1].strip() and lines[number - 2].strip() == "*/":
        number -= 1
    words = list[str]()
    while number > 0 and (found := _COMMENT.fullmatch(lines[number - 1])):
        words.insert(0, found[1].strip())
        number -= 1
    while words and not words[0]:
        words.pop(0)
    first = takewhile(lambda line: line and not line.startswith("@"), words)  # without parameters and what follows
    return " ".join(first)[:500]


def is_repository(folder: Path) -> bool:
    """Tell whether a folder is that of a whole project: with a manifest, or a `.git`, and no package itself."""
    return (
        folder.is_dir()
        and not (folder / "__init__.py").is_file()
        and ((folder / ".git").exists() or bool(manifests_of(folder)))
    )


def python_sources(path: str, globs: Sequence[str] = ("**/*.py",)) -> tuple[list[SourceFile], list[str]]:
    """Return the Python files at a path, of a repository without its tests, and a line for each that is too much.

    Raises:
        InputError: not retryable; nothing is there.
    """
    found = list_sources(path, globs, for_users=is_repository(Path(path)))
    return found[:MAX_FILES], [f"{file.name}: there are more than {MAX_FILES} files" for file in found[MAX_FILES:]]


def project_of(path: Path, root: Path) -> Path | None:
    """Return the folder of the project that a package or module is part of, at most `root`; None if there is none.

    A project has a manifest, such as a pyproject.toml, and its packages beside it or in its folder `src`.
    """
    top = path.resolve() if path.is_dir() else path.resolve().parent
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    near = (top, top.parent, *((top.parent.parent,) if top.parent.name == "src" else ()))
    return next((folder for folder in near if folder.is_relative_to(root) and manifests_of(folder)), None)


def project_at(folder: Path) -> Project | None:
    """Return what the manifest of a folder says; None if there is none that is read.

    Raises:
        InputError: not retryable; the manifest is not valid.
    """
    for name in MANIFESTS:
        if _is_inside(folder, folder / name):
            try:
                found = _READERS[name](folder, _text(folder, name))
                return replace(found, manifest=found.manifest or name)
            except _INVALID as error:
                fix = f"give the folder of a project with a valid {name}"
                raise InputError("there is no project", root=str(folder), reason=str(error)[:200], fix=fix) from error
    listed = _requirements(folder)
    return Project(folder.resolve().name, "requirements.txt", dependencies=listed) if listed else None


def manifests_of(folder: Path) -> list[str]:
    """Return the names of all manifests in a folder, also of those that are not read."""
    others = {file.name for pattern in _OTHER_MANIFESTS for file in folder.glob(pattern)}
    return sorted({name for name in MANIFESTS if _is_inside(folder, folder / name)} | others)


def _requirements(folder: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in _text(folder, "requirements.txt").splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def _pyproject(folder: Path, text: str) -> Project:
    document = tomllib.loads(text)
    found: dict[str, Any] = document.get("project", {})
    poetry: dict[str, Any] = document.get("tool", {}).get("poetry", {})
    needs = [f"{name} {version}" for name, version in _strings(poetry.get("dependencies", {})).items()]
    return Project(
        name=_word(found.get("name") or poetry.get("name") or folder.resolve().name),
        runtime=f"Python {found.get('requires-python', 'of any version')}",
        dependencies=_words(found.get("dependencies") or needs or _requirements(folder)),
        extras={name: _words(list_) for name, list_ in dict(found.get("optional-dependencies", {})).items()},
        commands=_strings(dict(found.get("scripts") or poetry.get("scripts") or {})),
    )


def _setup(folder: Path, text: str) -> Project:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(_text(folder, "setup.cfg"))
    get = parser.get
    needs = get("options", "install_requires", fallback="").split("\n")
    named = re.search(r"""\bname\s*=\s*["']([\w.-]+)""", text)
    return Project(
        name=get("metadata", "name", fallback="") or (named[1] if named else folder.resolve().name),
        manifest="setup.cfg" if parser.sections() else "setup.py",
        runtime=f"Python {get('options', 'python_requires', fallback='of any version')}",
        dependencies=[need.strip() for need in needs if need.strip()] or _requirements(folder),
    )


def _package_json(folder: Path, text: str) -> Project:
    found = dict(json.loads(text))
    engine = _strings(dict(found.get("engines") or {})).get("node", "of any version")
    scripts = {f"npm run {name}": line for name, line in _strings(dict(found.get("scripts") or {})).items()}
    bin_ = found.get("bin") or {}
    tools = _strings(bin_ if isinstance(bin_, dict) else {str(found.get("name")): bin_})
    return Project(
        name=_word(found.get("name") or folder.resolve().name),
        runtime=f"Node.js {engine}",
        dependencies=[f"{name} {version}" for name, version in _strings(found.get("dependencies") or {}).items()],
        extras={"development": [*_strings(found.get("devDependencies") or {})]} if found.get("devDependencies") else {},
        commands=tools | scripts,
    )


def _go_mod(folder: Path, text: str) -> Project:
    text = _cut(text)
    module = re.search(r"^module\s+(\S+)", text, re.MULTILINE)
    version = re.search(r"^go\s+(\S+)", text, re.MULTILINE)
    mains = folder.glob("cmd/*/main.go")
    needs = re.findall(r"^(?:require[ \t]+|[ \t]+)([\w./-]+[ \t]+v\S+)(?!.*// indirect)", text, re.MULTILINE)
    return Project(
        name=module[1] if module else folder.resolve().name,
        runtime=f"Go {version[1] if version else 'of any version'}",
        dependencies=[" ".join(need.split()) for need in needs],
        commands={main.parent.name: f"go run ./{main.parent.relative_to(folder)}" for main in mains},
    )


def _cargo(folder: Path, text: str) -> Project:
    document = tomllib.loads(text)
    package, needs = dict(document.get("package", {})), dict(document.get("dependencies", {}))
    binaries = {str(binary.get("name")): str(binary.get("path", "")) for binary in document.get("bin", ())}
    return Project(
        name=_word(package.get("name") or folder.resolve().name),
        runtime=f"Rust {package.get('rust-version', 'of any version')}",
        dependencies=[
            f"{name} {need if isinstance(need, str) else need.get('version', '')}" for name, need in needs.items()
        ],
        commands=binaries
        or ({_word(package["name"]): "src/main.rs"} if (folder / "src" / "main.rs").is_file() else {}),
    )


def _composer(folder: Path, text: str) -> Project:
    found = dict(json.loads(text))
    needs = _strings(found.get("require") or {})
    return Project(
        name=_word(found.get("name") or folder.resolve().name),
        runtime=f"PHP {needs.pop('php', 'of any version')}",
        dependencies=[f"{name} {version}" for name, version in needs.items()],
    )


_INVALID = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, configparser.Error)
"""The errors of a reader whose manifest is not valid."""
_READERS: Mapping[str, Callable[[Path, str], Project]] = {
    "pyproject.toml": _pyproject,
    "setup.cfg": _setup,
    "setup.py": _setup,
    "package.json": _package_json,
    "go.mod": _go_mod,
    "Cargo.toml": _cargo,
    "composer.json": _composer,
}


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _words(values: object) -> list[str]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list")
    return [_word(value) for value in values]


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is no table")
    return {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def settings_of(found: list[Outline], folder: Path) -> dict[str, list[str]]:
    """Return the environment variables that files other than Python read, or `.env.example` has, with the files."""
    read: dict[str, set[str]] = defaultdict(set)
    for outline in found:
        for name in outline.settings:
            read[name].add(outline.name)
    for name in _VARIABLE.findall(_cut(_text(folder, ".env.example"))):
        read[name].add(".env.example")
    return {name: sorted(files) for name, files in read.items()}


def deployed_by(folder: Path) -> list[str]:
    """Return the files of a folder that build, start or deploy it."""
    found = {file for pattern in _DEPLOYED for file in folder.glob(pattern) if file.is_file()}
    return sorted(str(file.relative_to(folder)) for file in found)


def ports_of(folder: Path) -> list[str]:
    """Return the ports that the Dockerfiles expose."""
    files = [*folder.glob("Dockerfile"), *folder.glob("*/Dockerfile")]
    found = (_PORTS.findall(_cut(_text(folder, file.relative_to(folder)))) for file in files)
    return sorted({port for lines in found for line in lines for port in line.split()})


def targets_of(folder: Path) -> dict[str, str]:
    """Return the targets of the Makefile with what it says of each."""
    found = _TARGET.finditer(_cut(_text(folder, "Makefile")))
    return {f"make {target['name']}": target["text"] or "" for target in found}


def readme_of(folder: Path) -> dict[str, str]:
    """Return the parts of a folder's README that a user reads first, by heading: its beginning, and how it is used."""
    found = (file for file in sorted(folder.glob("[Rr][Ee][Aa][Dd][Mm][Ee]*")) if _is_inside(folder, file))
    file = next(found, None)
    if file is None:
        return {}
    text = _NO_PROSE.sub("", _text(folder, file.name))
    head, *sections = re.split(r"^##?(?!#)[ \t]+(.+)$", text, flags=re.MULTILINE)
    parts = {"Overview": head.strip()}
    for number, (title, text) in enumerate(zip(sections[::2], sections[1::2], strict=True)):
        if number == 0 and not parts["Overview"]:
            parts["Overview"] = text.strip()
        elif _USE.search(title):
            parts[title.strip(" \t#")] = text.strip()
    return {title: text[:_MOST_README] for title, text in parts.items() if text}


def _is_inside(folder: Path, file: Path) -> bool:
    """Tell whether a path is a file that is in a folder, with links resolved."""
    try:
        return file.is_file() and file.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # the latter for links in a circle, before Python 3.13
        return False


def _text(folder: Path, name: str | Path) -> str:
    """Return the first mebibyte of a file of a folder; empty if there is none, or a link leads out of the folder."""
    if not _is_inside(folder, folder / name):
        return ""
    try:
        with (folder / name).open("rb") as content:
            return content.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _cut(text: str) -> str:
    """Return a text for regular expressions: the rest of a long line is left out."""
    return "\n".join(line[:_MOST_LINE] for line in text.split("\n"))
