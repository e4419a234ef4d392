"""Two doctors that are wrong in the first round, and outvote the third there; later they are right."""

from __future__ import annotations

from agents.doctors import DiagnoseRequest, Vote
from agents.healing.diagnosis import Bounds, Cause, by_rules, symptoms
from coditect import Agent

doctors = Agent("doctor-wrong", version="1.0.0", slots=16)


@doctors.capability("cause.wrong-first")
async def wrong_first(task: DiagnoseRequest) -> Vote:
    """Take everything for a full disk in the first round."""
    return Vote(cause=Cause.DISK if task.round == 1 else by_rules(symptoms(task.evidence, Bounds())))


@doctors.capability("cause.wrong-too")
async def wrong_too(task: DiagnoseRequest) -> Vote:
    """Agree with the other one."""
    return await wrong_first(task)
