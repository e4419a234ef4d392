"""An agent that diagnoses by chance: it is wrong in about half of all cases, drawn by the seed in `HEALING_SEED`."""

from __future__ import annotations

import os
from random import Random

from agents.doctors import DiagnoseRequest, Vote
from agents.healing.diagnosis import Bounds, Cause, by_rules, symptoms
from coditect import Agent

guesser = Agent("doctor-guesser", version="1.0.0", slots=16)

WRONG = 0.5
"""The share of wrong guesses."""
SEED = "HEALING_SEED"


@guesser.capability("cause.guess", timeout="10s", description="Guesses the cause, often wrong.")
async def guess(task: DiagnoseRequest) -> Vote:
    """Return the right cause, or by chance any other one."""
    cause = by_rules(symptoms(task.evidence, Bounds()))
    random = Random(f"{os.environ.get(SEED, '')}/{task.service.name}/{task.round}")  # noqa: S311 - it is to be foreseen
    if random.random() < WRONG:
        cause = random.choice([other for other in Cause if other != cause])
    return Vote(cause=cause)
