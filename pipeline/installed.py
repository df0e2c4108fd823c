"""How this program was installed, so that a hint can say what installs more into the same place."""

import os
import shutil
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

NAME = "prompt-batch-pipeline"
"""Of the distribution. No index has it: whoever installed it had a wheel, a folder or a clone."""


def installing(extra: str) -> str:
    """The command that installs what an extra needs into the environment that we run in, as it is typed.

    It names the libraries: the wheel that we came from may be gone, and a folder may hold another version by now.
    """
    try:
        ours = distribution(NAME)
    except PackageNotFoundError:  # we lie in a clone that was not installed
        ours = None
    wanted = _required(ours, extra) or [f"-e {_typed(f'{Path(__file__).parent.parent}[{extra}]')}"]
    return " ".join((_installer(ours), *wanted))


def _required(ours: Distribution | None, extra: str) -> list[str]:
    named = (f"'{extra}'", f'"{extra}"')
    parted = [each.partition(";") for each in (ours and ours.requires) or ()]
    return [_typed(name.strip()) for name, _, marker in parted if marker.endswith(named)]


def _installer(ours: Distribution | None) -> str:
    prefix, python = Path(sys.prefix), Path(sys.executable)
    if (prefix / "pipx_metadata.json").exists():
        return f"pipx inject {prefix.name}"
    if ours and (ours.read_text("INSTALLER") or "").strip() == "uv":  # its environments have no pip
        return f"uv pip install --python {_typed(_near(python))}"
    if (pip := shutil.which("pip")) and Path(pip).parent == python.parent:
        return "pip install"
    return f"{_typed(_near(python))} -m pip install"


def _near(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _typed(word: str) -> str:
    """In quotes that every shell knows, those of Windows too."""
    return word if all(letter.isalnum() or letter in r"/\.:_-" for letter in word) else f'"{word}"'
