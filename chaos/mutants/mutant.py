"""The class of a mutant, a mistake planted in a module, and the import hook that puts it into a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from coditect.errors import SetupError

PACKAGES = frozenset({"coditect", "dispatcher", "agents", "chaos"})
"""The packages to import again after a mutant was put in, since their modules may be loaded already."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake for the simulation to find, made by replacing words in one module's source."""

    name: str
    module: str
    old: str
    """The words to replace, which occur exactly once in the module."""
    new: str
    breaks: str
    """The consequence of the mistake, as a sentence."""
    caught_by: str
    """The name of the invariant that the simulation finds violated with the mutant."""
    seed: int = 10
    """The seed of the simulation that catches the mutant, played before all others.

    Seeds that 10 divides are the surest: their faults are few and excuse little, and they have ten times the
    work, so that the draws of other parts change nothing.
    """

    def applied(self, source: str) -> str:
        """Return a module's source with the mutant's words in place of the original ones.

        Raises:
            SetupError: when the words to replace do not occur exactly once.
        """
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
    """An import loader that compiles a module's mutated source, and uses no bytecode cache."""

    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled code of the module with the mutation applied."""
        source = self._mutant.applied(self.get_data(self.path).decode())
        return compile(source, self.path, "exec", dont_inherit=True)


class Hook(MetaPathFinder):
    """An import finder that finds the mutant's module with the mutation in it, and no other module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self.met = False
        """Whether the mutant's module was imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the mutant's module with the mutating loader; None for other modules."""
        if fullname != self._mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        self.met = True
        spec.loader = _Loader(fullname, spec.origin, self._mutant)
        return spec


def put_in(mutant: Mutant) -> Hook:
    """Install and return a mutant's import hook, and unload the product's modules, so that they are imported again."""
    hook = Hook(mutant)
    sys.meta_path.insert(0, hook)
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    return hook
