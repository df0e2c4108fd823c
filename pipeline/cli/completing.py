"""What the shell is offered as somebody types: job files, names of runs, models and settings."""

from pathlib import Path

from pipeline.models import MODELS
from pipeline.places import RUNS

_NO_JOBS = {"pyproject.toml", "ruff.toml", "taplo.toml"}


def job_files(incomplete: str) -> list[str]:
    """Files in TOML that begin so, and those in the folders that do."""
    try:
        found = [path for pattern in ("*.toml", "*/*.toml") for path in Path().glob(incomplete + pattern)]
    except (ValueError, NotImplementedError, OSError):  # no pattern; an absolute path; a folder that is not ours
        return []
    return sorted(str(path) for path in found if path.name not in _NO_JOBS and not str(path).startswith("."))


def run_names(incomplete: str) -> list[str]:
    """Names of runs that begin so."""
    try:
        return sorted(path.parent.name for path in RUNS.glob(f"{incomplete}*/manifest.json"))
    except (ValueError, NotImplementedError, OSError):
        return []


def model_names(incomplete: str) -> list[str]:
    """Names of models that begin so."""
    return [model.name for model in MODELS if model.name.startswith(incomplete)]


def setting_names(incomplete: str) -> list[str]:
    """Names of sections and settings that begin so; keys only where there is no section."""
    from pipeline.job.settings import sections

    every = [name for each in sections() for name in (each.name, *(setting.name for setting in each.settings))]
    found = [name for name in every if name.startswith(incomplete)]
    keys = [setting.key for each in sections() for setting in each.settings if setting.key.startswith(incomplete)]
    return list(dict.fromkeys(found or keys))
