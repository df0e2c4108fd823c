"""The command that installs an extra, by how the program itself was installed."""

import importlib.metadata
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import installed

ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
REQUIRES = ["httpx<0.29,>=0.28", "tinytag<3,>=2.3; extra == 'media'", "pillow==13.0.0; extra == 'dev'"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in a folder `my project`, in which we are: installed by pip, and activated."""
    programs = tmp_path / "my project" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "pip"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.chdir(tmp_path / "my project")
    monkeypatch.setattr(sys, "prefix", str(programs.parent))
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(programs))
    met(monkeypatch, tmp_path, "pip")
    return tmp_path


def met(monkeypatch: pytest.MonkeyPatch, place: Path, installer: str) -> None:
    metadata = place / "prompt_batch_pipeline-0.1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "INSTALLER").write_text(f"{installer}\n")
    requires = "".join(f"Requires-Dist: {each}\n" for each in REQUIRES)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {installed.NAME}\nVersion: 0.1.0\n{requires}")
    monkeypatch.setattr(installed, "distribution", lambda name: importlib.metadata.Distribution.at(metadata))


def test_pip_of_the_environment_is_typed_as_it_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed.installing("media") == 'pip install "tinytag<3,>=2.3"'
    monkeypatch.setenv("PATH", "/usr/bin")  # not activated: that pip would install into another environment
    assert installed.installing("media") == '.venv/bin/python -m pip install "tinytag<3,>=2.3"'
    monkeypatch.chdir(place)
    assert installed.installing("media") == '"my project/.venv/bin/python" -m pip install "tinytag<3,>=2.3"'


def test_uv_and_pipx_install_into_their_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met(monkeypatch, place, "uv")
    assert installed.installing("media") == 'uv pip install --python .venv/bin/python "tinytag<3,>=2.3"'
    (place / "my project/.venv/pipx_metadata.json").write_text("{}")
    assert installed.installing("media") == 'pipx inject .venv "tinytag<3,>=2.3"'


def test_a_clone_that_was_not_installed_or_got_the_extra_later_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed.installing("excel") == f'pip install -e "{ROOT}[excel]"'

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed, "distribution", missing)
    assert installed.installing("media") == f'pip install -e "{ROOT}[media]"'


def _known(requirement: Requirement) -> tuple[str, str]:
    return canonicalize_name(requirement.name), str(requirement.specifier)


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_is_named_with_what_it_needs(extra: str) -> None:
    wanted = list(map(Requirement, EXTRAS[extra]))
    typed = list(map(Requirement, shlex.split(installed.installing(extra))[-len(wanted) :]))
    assert sorted(map(_known, typed)) == sorted(map(_known, wanted))


@pytest.mark.long
@pytest.mark.parametrize("tool", ["pip", "uv", "uv tool", "pipx"])
def test_the_command_installs_what_was_missing(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a wheel that is gone by then, typed into a shell as it stands."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "UV_TOOL_DIR", "PIPX_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS"):  # whom this machine trusts
        monkeypatch.setenv(name, "true")
    for name in ("UV_TOOL_BIN_DIR", "PIPX_BIN_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "programs"))

    def ran(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    tools = tmp_path / "tools"
    ran(sys.executable, "-m", "venv", str(tools))
    if tool != "pip":
        ran(str(tools / "bin" / "pip"), "install", "-q", tool.partition(" ")[0])
    monkeypatch.setenv("PATH", f"{tools / 'bin'}:/usr/bin:/bin")
    ran(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    match tool:
        case "pip":
            python = tools / "bin" / "python"
            ran("pip", "install", "-q", str(wheel))
        case "uv":
            python = tmp_path / ".venv" / "bin" / "python"
            ran("uv", "venv", "-q", "--python", sys.executable)
            ran("uv", "pip", "install", "-q", str(wheel))
        case _:
            ran(*tool.split(), "install", "-q", *(("--python", sys.executable) if tool != "pip" else ()), str(wheel))
            python = next((tmp_path / "home").glob(f"**/{installed.NAME}/bin/python"))
    wheel.unlink()
    told = "from pipeline.installed import installing; print(installing('media'))"
    command = subprocess.check_output((python, "-c", told), text=True)
    ran(str(python), "-c", "from importlib.util import find_spec; assert not find_spec('tinytag')")
    ran("sh", "-c", command)
    ran(str(python), "-c", "import tinytag")
