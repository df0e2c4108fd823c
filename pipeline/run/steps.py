"""What a check has looked at: one step for each thing that can be wrong."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import PipelineError, as_known

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was looked at. `skipped`: it could not be, as an earlier step failed."""

    name: str
    state: State
    found: str = ""  # what there is, or what is wrong
    remark: str = ""
    hint: str = ""  # what mends it
    warnings: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # that are offered
    target: str = ""  # of which target it is, where the job has several
    numbers: Mapping[str, float] = field(default_factory=dict)  # by name, with the unit in it


class Steps(list[Step]):
    """What was looked at so far."""

    @property
    def passed(self) -> bool:
        """Whether nothing failed; what was skipped is behind something that did."""
        return all(step.state == "passed" for step in self)

    def passes(
        self,
        name: str,
        found: str,
        remark: str = "",
        numbers: Mapping[str, float] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        """It is as it should be."""
        self.append(Step(name, "passed", found, remark, numbers=numbers or {}, warnings=warnings))

    def fails(self, name: str, error: PipelineError) -> None:
        """Something is wrong: each of the errors that came with it is a step."""
        self.extend(Step(name, "failed", each.message, hint=each.hint) for each in (error, *error.others))

    def skips(self, *names: str) -> None:
        """Nobody can tell."""
        self.extend(Step(name, "skipped") for name in names)

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What goes wrong in the block makes the step fail; the block itself says what passes."""
        try:
            yield
        except Exception as error:
            if (known := as_known(error)) is None:
                raise
            self.fails(name, known)
