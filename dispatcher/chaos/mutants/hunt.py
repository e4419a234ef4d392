"""The hunt for a mutant: play the simulation's seeds, or run the tests, that must fail with it in the product."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from dispatcher.chaos.mutants import seeds
from dispatcher.chaos.mutants.mutant import Mutant
from dispatcher.chaos.testbed import command

SEEDS = 300
SECONDS = 600.0
"""The time limit for hunting one mutant; a mutant that makes the simulation hang is not caught by that."""
TESTS_FAILED = 1
"""The exit code of pytest when tests ran and some failed."""
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, slots=True)
class Catch:
    """The outcome of hunting one mutant: which invariants or tests caught it and where, if any did."""

    mutant: Mutant
    by: str
    """The violated invariants or the failed tests; empty when the mutant was not caught."""
    where: str
    """The seed that caught the mutant, or the reason why none did."""

    @property
    def line(self) -> str:
        """The outcome of the hunt as one line of text for a person."""
        word = "caught  " if self.by else "SURVIVED"
        return f"{word}  {self.mutant.name:<28} {self.by or '-'} ({self.where})"


async def play_seeds(
    mutant: str, first: int, last: int, invariants: Sequence[str]
) -> AsyncGenerator[dict[str, object], None]:
    """Simulate a run of each seed with the mutant, yield the outcomes, and stop when one of `invariants` breaks.

    Without `invariants`, any broken one is enough.
    """
    arguments = command(mutant, (seeds.MODULE, str(first), str(last), *invariants))
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=_environment()
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            yield json.loads(line)
    except BaseException:
        process.kill()
        raise
    finally:
        await process.wait()


async def hunt(mutant: Mutant, *, most_seeds: int = SEEDS) -> Catch:
    """Try to catch one mutant within the time limit, by the invariants or the tests that it declares."""
    try:
        async with asyncio.timeout(SECONDS):
            if mutant.invariants:
                return await _in_simulation(mutant, most_seeds)
            return await _by_tests(mutant)
    except TimeoutError:
        return Catch(mutant, "", f"not within {SECONDS:.0f} s")


async def _in_simulation(mutant: Mutant, most_seeds: int) -> Catch:
    """Simulate runs with the mutant, of its own seed, then of seeds from 1, until an invariant that it names breaks."""
    played, others = 0, set[str]()
    for first, last in ((mutant.seed, mutant.seed), (1, most_seeds)):
        async with aclosing(play_seeds(mutant.name, first, last, sorted(mutant.invariants))) as found:
            async for told in found:
                played += 1
                broken = told["broken"]
                assert isinstance(broken, dict)
                if hit := mutant.invariants & broken.keys():
                    return Catch(mutant, "; ".join(sorted(hit)), f"seed {told['seed']}")
                others |= broken.keys()
    why = f"{played} seeds" + (f", which broke {', '.join(sorted(others))}" if others else "")
    return Catch(mutant, "", why)


async def _by_tests(mutant: Mutant) -> Catch:
    for test in mutant.tests:
        arguments = ("pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", "--no-header", test)
        process = await asyncio.create_subprocess_exec(
            *command(mutant.name, arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(),
            cwd=ROOT,
        )
        try:
            said, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode != TESTS_FAILED:
            return Catch(mutant, "", f"{test} ended with {process.returncode}: {said.decode()[-300:]!r}")
    return Catch(mutant, "; ".join(mutant.tests), "failed")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
