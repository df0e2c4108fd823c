"""What is shown of a job that is checked: each step with its mark."""

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len

from pipeline.console.screen import Screen, out, styled, things
from pipeline.language import Data, spoken
from pipeline.run.steps import State, Step, Steps
from pipeline.terminal import one_line, visible

_MARKS: Mapping[State, tuple[str, str, str]] = {
    "passed": ("✓", "+", "green"),
    "failed": ("✗", "x", "bold red"),
    "skipped": ("–", "-", "dim"),
}
"""Each also as a stream has it that takes ASCII alone."""

STEP_KEYS: Mapping[str, str] = {
    "passed": "whether every step passed",
    "steps": "list of the steps, in order, each with `step`, `target` (where the job has several), `state` (passed,"
    " failed, or skipped: it could not be tried), `found`, `remark`, `hint` and `warnings`, and its own numbers:"
    " `rows`, `unread` (documents), `rpm`, `tpm`, `rpd`, `connect_ms`, `latency_ms`, `models_offered` with `models`,"
    " `learned_rpm`, `learned_tpm`",
}
"""Keys of `check --json` and what they mean."""


def show_steps(steps: Steps, to: Screen = out) -> None:
    """One line for each step, and below it what mends it; those of a target below its name."""
    names, target = max(cell_len(spoken(step.name)) for step in steps), ""
    for step in steps:
        if step.target != target:
            target = step.target
            to.print(styled(("\n", ""), (f"target {one_line(target)}" if target else "all", "bold")))
        _show(step, names, to)
    failed, skipped = (sum(step.state == state for step in steps) for state in ("failed", "skipped"))
    if failed or skipped:
        could = f", {skipped} could not be tried" if skipped else ""
        to.print(f"\n{things(failed, 'step')} failed{could}", style="bold")


def _show(step: Step, names: int, to: Screen) -> None:
    mark, plain, style = _MARKS[step.state]
    mark = plain if to.options.ascii_only else mark
    beside = names + 4
    first, *others = visible(spoken(step.found)).split("\n")
    remark = f"   {one_line(spoken(step.remark))}" if step.remark else ""
    told = Data(first + remark) if first or remark else "not tried"
    called = spoken(step.name)
    name = (Data(f" {called}{' ' * (names - cell_len(called))}  "), "" if step.state == "failed" else "dim")
    to.print(styled((mark, style), name, told), indent=beside)
    for line in others:
        to.print(Data(" " * beside + line.strip()), indent=beside)
    for warning in step.warnings:
        to.print(styled(" " * beside, ("warning: ", "yellow"), Data(one_line(spoken(warning)))), indent=beside)
    if step.hint:
        to.print(styled(" " * beside, ("hint: ", "cyan"), Data(one_line(spoken(step.hint)))), indent=beside)


def steps_json(steps: Steps) -> dict[str, Any]:
    """The same for a program."""
    return {
        "passed": steps.passed,
        "steps": [
            {
                "step": step.name,
                "target": step.target or None,
                "state": step.state,
                "found": step.found,
                "remark": step.remark,
                "hint": step.hint,
                "warnings": list(step.warnings),
                **step.numbers,
                **({"models": list(step.models)} if step.models else {}),
            }
            for step in steps
        ],
    }
