"""What a mutant is, and the import hook that puts one into a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from coditect.errors import SetupError

PACKAGES = frozenset({"coditect", "dispatcher", "agents", "tests"})
"""What is imported again after a mutant was put in: it may have been imported without it."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake, as a replacement of words in a module's source."""

    name: str
    module: str
    old: str
    """Stands exactly once in the module."""
    new: str
    breaks: str
    """What goes wrong by it, as a sentence."""
    caught_by: tuple[str, ...]
    """Invariants that the simulation finds violated, or the tests that fail."""
    seed: int = 10
    """Of the simulation: one that catches it, played before all others. The tenths are the surest: their faults are few
    and excuse little, and they have ten times the work, so that what others draw changes nothing."""

    @property
    def invariants(self) -> frozenset[str]:
        """The promises that it breaks."""
        return frozenset(one for one in self.caught_by if "::" not in one)

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests that fail with it."""
        return tuple(one for one in self.caught_by if "::" in one)

    @property
    def told(self) -> str:
        """What catches it, and the seed, for a person."""
        return "; ".join(self.caught_by) + (f", seed {self.seed}" if self.invariants else "")

    def applied(self, source: str) -> str:
        """The module's source with the mistake in it. Raises: SetupError when the words are not there once."""
        if source.count(self.old) != 1:
            raise SetupError(
                "The words that a mutant replaces do not stand in the module once",
                mutant=self.name,
                module=self.module,
                found=source.count(self.old),
                fix="the module has changed: change the mutant with it",
            )
        return source.replace(self.old, self.new)


class _Loader(SourceFileLoader):
    """Compiles the mutated source; neither reads nor writes compiled files."""

    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        """See `SourceFileLoader`."""
        source = self._mutant.applied(self.get_data(self.path).decode())
        return compile(source, self.path, "exec", dont_inherit=True)


class Hook(MetaPathFinder):
    """Finds the mutant's module, with the mistake in it; leaves all others to those behind it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self.met = False
        """Whether the module was imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        self.met = True
        spec.loader = _Loader(fullname, spec.origin, self._mutant)
        return spec


def put_in(mutant: Mutant) -> Hook:
    """Has everything of the product imported again, with the mistake in it. For a process that has done nothing yet."""
    hook = Hook(mutant)
    sys.meta_path.insert(0, hook)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    return hook
