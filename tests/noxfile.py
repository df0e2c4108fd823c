"""Every check in one command: `.venv/bin/nox -f tests/noxfile.py`, in the environment that nox is installed in."""

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and format."""
    _run(session, "ruff", "check", ".")
    _run(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, strictly."""
    _run(session, "mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The suite, pages included; what follows `--` goes to pytest."""
    _run(session, "pytest", "-q", *session.posargs)


def _run(session: nox.Session, *command: str) -> None:
    session.chdir(Path(__file__).parent.parent)
    session.run(sys.executable, "-m", *command)
