"""What the sections of a job file have in common."""

from pydantic import BaseModel, ConfigDict

from pipeline.terminal import is_like_key

MOST = 2**31 - 1
"""Of a number that is told to the service: its own have 32 bits."""


class Section(BaseModel):
    """One section: every key is known, and each value is of its type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def refuse_unreal(path: str) -> None:
    """Raise for a path that would be a directory of such a name here: only a shell, or a cloud, knows what is meant."""
    if "://" in path:
        raise ValueError(f"{path} is no path of a file on this machine")
    if path.startswith(("~", "$")) and "/" in path:
        raise ValueError(f"{path} begins with what only a shell fills in: write the whole path")


def refuse_key(name: str | None) -> str | None:
    """The name of a variable; raises for what may be the key itself."""
    is_name = name is None or (name.isidentifier() and not name.startswith("AIza") and not is_like_key(name))
    if not is_name:  # do not show it: it may be the key
        raise ValueError("it is the name of a variable that holds the secret, as GEMINI_API_KEY, never the secret")
    return name
