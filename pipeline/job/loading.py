"""From a job file and the flags to a job."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.job.checking import check_caching, check_lanes, check_schema, check_spoken, check_targets
from pipeline.job.compiling import compile_job
from pipeline.job.job import Job
from pipeline.mistakes import as_job_error
from pipeline.protocols import PROTOCOLS, Protocol
from pipeline.sections import JobFile

_BY_PROGRAM = "a program"
"""Where a setting comes from that stands in no file."""


def load(path: Path, flags: Mapping[str, object] | None = None) -> Job:
    """Read a job file; `flags` ("model.name" → value, None: not given) win over it. Raises `JobError`."""
    return compiled(path, *read_job(path, flags))


def load_with(path: Path, sections: Mapping[str, Any]) -> Job:
    """Read a job file and lay sections over it. Raises `JobError`."""
    data, text = _written(path)
    origins = _origins(data, str(path)) | _origins(sections, _BY_PROGRAM)
    return compiled(path, *_checked(path, laid_over(data, sections), text, origins, {}))


def laid_over(data: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Sections with others laid over them: a table key by key, all else whole."""
    both = dict(data)
    for name, values in more.items():
        there = both.get(name)
        both[name] = {**there, **values} if isinstance(there, dict) and isinstance(values, dict) else values
    return both


def made(path: Path, sections: Mapping[str, Any]) -> Job:
    """A job of sections as a file has them, which stand in none: what they name is looked for beside `path`.

    Raises `JobError`.
    """
    return compiled(path, *_checked(path, dict(sections), "", _origins(sections, _BY_PROGRAM), {}))


def read_job(path: Path, flags: Mapping[str, object] | None = None) -> tuple[JobFile, Mapping[str, str]]:
    """A job file's settings, and where each comes from; no other file is read. Raises `JobError`."""
    data, text = _written(path)
    return _checked(path, data, text, _origins(data, str(path)), flags or {})


def _written(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text("utf-8-sig")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise JobError(f"no job file at {path}", _other_jobs(path)) from None
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not valid TOML: {error}") from None
    if path.stem.startswith(".") or not path.stem.isprintable():
        raise JobError(
            f"the job file is called {path.name!r}, and its run directory would be called {path.stem!r}",
            "give it a plain name such as summarize.toml",
        )
    return data, text


def _origins(sections: Mapping[str, Any], origin: str) -> dict[str, str]:
    return {f"{name}.{key}": origin for name, values in sections.items() if isinstance(values, dict) for key in values}


def _checked(
    path: Path, data: dict[str, Any], text: str, origins: dict[str, str], flags: Mapping[str, object]
) -> tuple[JobFile, Mapping[str, str]]:
    variable = _named_protocol(data, flags).base_url_variable
    if (base_url := os.environ.get(variable)) and isinstance(data.setdefault("endpoint", {}), dict):
        data["endpoint"]["base_url"] = base_url
        origins["endpoint.base_url"] = variable
    for name, value in flags.items():
        if value is not None:
            section, key = name.split(".")
            if isinstance(data.setdefault(section, {}), dict):
                data[section][key] = value
                origins[name] = "flag"
    _refuse_huge(data, path)
    try:
        spec = JobFile.model_validate(data)
    except ValidationError as error:
        raise as_job_error(error, path, text, JobFile) from None
    return spec, origins


def compiled(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Job:
    """The job of what `read_job` gives, with its templates. Raises `JobError`."""
    job = compile_job(path, spec, origins)
    for each in job.asked:
        check_spoken(each.spec, path)
        check_schema(each)
        check_caching(each)
    check_targets(job)
    check_lanes(job)
    return job


def _named_protocol(data: Mapping[str, Any], flags: Mapping[str, object]) -> Protocol:
    """The protocol that is named, before anything is checked."""
    section = data.get("endpoint")
    named = flags.get("endpoint.provider") or (section.get("provider") if isinstance(section, dict) else None)
    return next((each for name, each in PROTOCOLS.items() if name == named), PROTOCOLS["gemini"])


def _refuse_huge(data: Mapping[str, Any], path: Path, place: tuple[str, ...] = ()) -> None:
    """Raise for a whole number that TOML lacks, at any depth: nothing that it is written to or sent in has it."""
    for key, value in data.items():
        if isinstance(value, dict):
            _refuse_huge(value, path, (*place, key))
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            section, *rest = (*place, key)
            raise JobError(f"[{section}] {'.'.join(rest)}: the number has more than 64 bits\n{path}")


def _other_jobs(path: Path) -> str:
    jobs = sorted(str(found) for found in Path("jobs").glob("*.toml"))
    close = difflib.get_close_matches(str(path), jobs, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(jobs)}" if jobs else "paths are relative to the directory you are in"
