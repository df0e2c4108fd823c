"""Batches of this program that a service has, and those of them that no run here knows: nobody would collect them."""

import re
from contextlib import suppress
from pathlib import Path

from pipeline.errors import RunStateError
from pipeline.places import RUNS
from pipeline.providers.batches.base import RemoteBatch
from pipeline.providers.connection import Connected
from pipeline.records import Failure
from pipeline.run.steps import Step
from pipeline.store.batch_states import read
from pipeline.targets import Target

_OURS = re.compile(r"pp-[0-9a-f]{8}-\d+-\d+")
_SHOWN = 3


async def batches_step(speaker: Connected, target: Target, runs: Path = RUNS) -> Step:
    """What is to be known of a target's batches before a run uses them; asks what is free of charge."""
    service = speaker.open(target).batches()
    if service is None:
        return Step(
            "batches",
            "failed",
            f"no batches are spoken of with {target.endpoint}",
            hint='set lane = "flex" or "standard"; Google\'s batches are those of provider = "gemini"',
        )
    listed = await service.find_all()
    if isinstance(listed, Failure):
        return Step(
            "batches",
            "failed",
            f"they cannot be listed: {listed.message}",
            hint='a relay may have none: set lane = "flex" or "standard"',
        )
    ours = [each for each in listed if _OURS.fullmatch(each.label)]
    working, strays = [each for each in ours if not each.is_over], strays_of(ours, runs)
    found = f"{len(working):,} at work" if working else "none at work"
    if not strays:
        return Step("batches", "passed", found, "of this program")
    names = ", ".join(f"{each.name} ({each.label})" for each in strays[:_SHOWN]) + ", …" * (len(strays) > _SHOWN)
    warning = f"{len(strays):,} of them no run in {runs}/ knows, and nobody here collects them: {names}"
    return Step("batches", "passed", found, "of this program", warnings=(warning,))


def strays_of(ours: list[RemoteBatch], runs: Path) -> list[RemoteBatch]:
    """Those at work that no run directory has."""
    known: set[str] = set()
    for directory in runs.iterdir() if runs.is_dir() else ():
        with suppress(RunStateError, OSError):
            states = read(directory).values()
            known |= {state.file for state in states} | {state.name for state in states}
    return [each for each in ours if not each.is_over and each.name not in known and each.label not in known]
