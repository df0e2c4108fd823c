"""Mistakes in a job file as a person should read them: all of them, each with its line and what was meant."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.errors import JobError
from pipeline.toml_lines import Place


@dataclass(frozen=True, slots=True)
class Where:
    """Where the settings of a job are said."""

    path: Path
    lines: Mapping[Place, int]
    said_by: Mapping[str, str]  # `limits.rpm` → the flag or the variable that wins over the file

    def of(self, place: Sequence[str]) -> str:
        """`job.toml:12`, of the innermost of what is at a place and around it that stands there; or the flag."""
        if said := self.said_by.get(".".join(place[:2])):
            return said
        key = tuple(int(part) if part.isdecimal() else part for part in place)
        for end in range(len(key), 0, -1):
            if line := self.lines.get(key[:end]):
                return f"{self.path}:{line}"
        return str(self.path)

    def named_in(self, message: str) -> str:
        """Where the first of the settings stands that a message names and the file has; the file alone for none."""
        for section, number, key in _NAMED.findall(message):
            count = [str(int(number) - 1)] if number else []
            if (at := self.of([*section.split("."), *count, key])) != str(self.path):
                return at
        return str(self.path)


_NAMED = re.compile(r"\[+([\w.]+)\]+(?: number (\d+))?(?: (\w+))?")
"""A setting as messages name it: [section] key, or [[section]] number 2."""


def placed(error: JobError, path: Path, origins: Mapping[str, str]) -> JobError:
    """The same error, with the line of the first setting that it names, where it tells the file alone."""
    what, _, place = error.message.rpartition("\n")
    if place == str(path):
        named = (stands_at(path, origins, f"{section}.{key}") for section, _, key in _NAMED.findall(what))
        error.message = f"{what}\n{next((at for at in named if at != place), place)}"
        error.args = (error.message,)
    return error


def stands_at(path: Path, origins: Mapping[str, str], name: str) -> str:
    """File and line of a setting; the file alone where something else says it."""
    found = origins.get(name, "")
    return found if found.startswith(f"{path}:") else str(path)


def as_job_error(error: ValidationError, where: Where, form: type[BaseModel]) -> JobError:
    """What is wrong with a job file of this `form`, misspelt names first; all but the first are its `others`."""
    told: dict[tuple[str, ...], JobError] = {}
    spelt, every = set(), error.errors(include_url=False)
    or_a_truth = {found["loc"][:-1] for found in every if found["loc"][-1:] == ("bool",)}
    for found in sorted(every, key=lambda found: found["type"] != "extra_forbidden"):
        # pydantic names the branch of a union as if it were a key, and the place in a list.
        place = [str(part) for part in found["loc"] if not str(part).startswith("literal[")]
        if place[-1:] in (["int"], ["str"], ["float"], ["bool"], ["dict[str,any]"]):
            place.pop()
        close = found["type"] == "extra_forbidden" and difflib.get_close_matches(place[-1], _known(place, form), n=1)
        # A misspelt name is also a missing one: the spelling is what helps.
        if tuple(place) not in told and not (found["type"] == "missing" and tuple(place) in spelt):
            said = found["msg"] + (", true or false" if found["loc"][:-1] in or_a_truth else "")
            if found["type"] == "model_type" and len(place) == 1:
                said = f"it is a section: write `[{place[0]}]` on a line of its own, and its settings below"
            if found["type"] == "list_type" and (len(place) == 1 or isinstance(found["input"], dict)):
                said = f"it may come several times: write [[{'.'.join(place)}]], with two brackets"
            told[tuple(place)] = _told(found["type"], said, place, close[0] if close else "", where, form)
        if close:
            spelt.add((*place[:-1], close[0]))
    first, *others = told.values()
    first.others = tuple(others)
    return first


_LIKE_A_KEY = {"api_key", "apikey", "api-key", "token", "secret", "password", "gemini_api_key", "google_api_key"}


def _told(kind: str, said: str, place: list[str], close: str, where: Where, form: type[BaseModel]) -> JobError:
    named, at = list(place), where.of(place)
    number = f" number {int(place.pop(1)) + 1}" if place[1:2] and place[1].isdecimal() else ""
    section = (f"[[{place[0]}]]{number}" if number else f"[{place[0]}]") if place else "the job file"
    table = f"[[{place[0]}]]{number}" if number and len(place) <= 2 else f"[{'.'.join(place[:-1])}]"
    name = place[-1] if place else ""
    if kind == "extra_forbidden":
        what = f"`{name}` is not a setting of {table}" if len(place) > 1 else f"[{name}] is not a section"
        hint = f"did you mean `{close}`?" if close else f"it knows {', '.join(sorted(_known(named, form)))}"
        if not close and len(place) == 2 and (sections := _sections_with(name, form)):
            hint = f"it is a setting of {' or '.join(sections)}: it stands below that line, which has no # before it"
        if name.lower() in _LIKE_A_KEY:
            hint = "a key never stands in a job file: `export GEMINI_API_KEY=…`, or say with `key` where it is"
        return JobError(f"{at}: {what}", hint)
    if kind == "missing":
        what = f"{table} has no `{name}`" if len(place) > 1 else f"the section [{name}] is missing"
        return JobError(f"{at}: {what}", f"`pipeline settings {named[0]}` lists what it may have")
    message = said.removeprefix("Value error, ")
    if len(place) == 1:  # of several settings together: the one that is named first
        at = where.of([*place, message.split(" ")[0]])
    if not place:
        at = where.named_in(message)
    name = f"{section} {'.'.join(place[1:])}: ".replace(" : ", ": ") if place else ""
    return JobError(f"{at}: {name}{message[0].lower() + message[1:]}")


def _known(place: list[str], form: type[BaseModel]) -> list[str]:
    """Names beside the last of a place."""
    model = form
    for part in place[:-1]:
        if not part.isdecimal():
            annotation = next(f.annotation for name, f in model.model_fields.items() if part in (name, f.alias))
            model = _model_in(annotation) or model
    return _names(model)


def _sections_with(setting: str, form: type[BaseModel]) -> list[str]:
    """The sections that have a setting of this name."""
    found = []
    for section, field in form.model_fields.items():
        model = _model_in(field.annotation)
        if model and setting in _names(model):
            found.append(f"[[{section}]]" if get_origin(field.annotation) is list else f"[{section}]")
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
