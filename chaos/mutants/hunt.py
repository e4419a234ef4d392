"""The hunt for a mutant: play the simulation's seeds, of which one must fail with it in the product."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.mutants import seeds
from chaos.mutants.mutant import Mutant
from chaos.testbed import command

SEEDS = 300
SECONDS = 600.0
"""The time limit for hunting one mutant; a mutant that makes the simulation hang is not caught by that."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Catch:
    """The outcome of hunting one mutant: the invariant that caught it, if any did, and the seed."""

    mutant: Mutant
    by: str
    """The violated invariant; empty when the mutant was not caught."""
    where: str
    """The seed that caught the mutant, or the reason why none did."""

    @property
    def line(self) -> str:
        """The outcome of the hunt as one line of text for a person."""
        word = "caught  " if self.by else "SURVIVED"
        return f"{word}  {self.mutant.name:<28} {self.by or '-'} ({self.where})"


async def play_seeds(mutant: Mutant, first: int, last: int) -> AsyncGenerator[dict[str, Any], None]:
    """Simulate a run of each seed with the mutant, yield the outcomes, and stop when it is caught."""
    arguments = command(mutant.name, (seeds.MODULE, str(first), str(last), mutant.caught_by))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
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
    """Try to catch one mutant within the time limit, in runs of its own seed, then of seeds from 1."""
    try:
        async with asyncio.timeout(SECONDS):
            return await _in_simulation(mutant, most_seeds)
    except TimeoutError:
        return Catch(mutant, "", f"not within {SECONDS:.0f} s")


async def _in_simulation(mutant: Mutant, most_seeds: int) -> Catch:
    played, others = 0, set[str]()
    for first, last in ((mutant.seed, mutant.seed), (1, most_seeds)):
        async with aclosing(play_seeds(mutant, first, last)) as found:
            async for told in found:
                played += 1
                if mutant.caught_by in told["broken"]:
                    return Catch(mutant, mutant.caught_by, f"seed {told['seed']}")
                others |= told["broken"].keys()
    why = f"{played} seeds" + (f", which broke {', '.join(sorted(others))}" if others else "")
    return Catch(mutant, "", why)
