"""Machines of their own, each with its network, its /tmp, its processes and its name; they share one folder or none.

Namespaces of Linux make them: root is needed, and nothing is left of one whose first process is killed.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDER = "/mnt/runs"
"""Which the machines share, or each has for itself."""
SERVICE = "198.18.0.1"
"""Where all of them find what listens on the host, whatever is between themselves, while `reachable`."""
_MADE = """
mount -t tmpfs tmpfs /mnt && mkdir /mnt/runs && { [ -z "$2" ] || mount --bind "$2" /mnt/runs; } &&
mount -t tmpfs -o size=1g tmpfs /tmp && mount -t tmpfs -o size=1g tmpfs /dev/shm && mkdir /tmp/home &&
hostname "$1" && ip link set lo up &&
echo made && trap '' CHLD && exec sleep infinity
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """One of them; `address` is where the others find it."""

    name: str
    address: str
    pid: int  # of its first process, as the host counts

    def begin(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Begin a command in its folder; what comes back is the process of the host that waits for it."""
        here = {"PATH": os.environ["PATH"], "HOME": "/tmp/home", "LANG": "C.UTF-8", **env}
        return subprocess.Popen(
            [*_inside(self.pid), "sh", "-c", f'cd {FOLDER} && exec "$@"', "sh", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=here,
        )

    def say(self, command: Sequence[str], env: Mapping[str, str]) -> str:
        """What a command says that succeeds."""
        process = self.begin(command, env)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, (out + err).decode()
        return out.decode()

    def link(self, state: str) -> None:
        """Have its way to the others `up` or `down`; that to the service stays."""
        _do("nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "link", "set", "near", state)


@contextmanager
def reachable() -> Iterator[None]:
    """Gives the host the address `SERVICE`; without rights to make machines the test is skipped."""
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(["unshare", "--net", "true"]).returncode:
        pytest.skip("only root of Linux can make machines")
    _do("ip", "address", "replace", f"{SERVICE}/32", "dev", "lo")
    try:
        yield
    finally:
        _do("ip", "address", "delete", f"{SERVICE}/32", "dev", "lo")


@contextmanager
def machines(names: Sequence[str], shared: Path | None) -> Iterator[list[Machine]]:
    """Two machines."""
    switch = f"switch-{os.getpid()}"  # a machine that dies takes nothing of the others' with it
    _do("ip", "link", "add", switch, "up", "type", "bridge")
    try:
        with ExitStack() as there:
            yield [there.enter_context(_machine(name, number, shared, switch)) for number, name in enumerate(names, 1)]
    finally:
        _do("ip", "link", "delete", switch)


@contextmanager
def _machine(name: str, number: int, shared: Path | None, switch: str) -> Iterator[Machine]:
    flags = ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
    command = ["unshare", *flags, "sh", "-c", _MADE, "sh", name, str(shared or "")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        far, wire = f"to-{holder.pid}", f"wire-{holder.pid}"
        try:
            assert holder.stdout and holder.stdout.readline() == b"made\n"
            pid = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
            _do("ip", "link", "add", far, "type", "veth", "peer", "service", "netns", str(pid))
            _do("ip", "addr", "add", f"198.18.{number}.1/24", "dev", far)
            _do("ip", "link", "set", far, "up")
            _within(pid, "addr", "add", f"198.18.{number}.2/24", "dev", "service")
            _within(pid, "link", "set", "service", "up")
            _within(pid, "route", "add", "default", "via", f"198.18.{number}.1")
            _do("ip", "link", "add", wire, "master", switch, "type", "veth", "peer", "near", "netns", str(pid))
            _do("ip", "link", "set", wire, "up")
            address = f"198.18.100.{number}"
            _within(pid, "addr", "add", f"{address}/24", "dev", "near")
            _within(pid, "link", "set", "near", "up")
            yield Machine(name, address, pid)
        finally:
            holder.kill()
            for link in (far, wire):  # which are gone where the machine is
                subprocess.run(["ip", "link", "delete", link], capture_output=True)


def _inside(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net", "--mount", "--uts", "--pid"]


def _within(pid: int, *arguments: str) -> None:
    _do("nsenter", f"--net=/proc/{pid}/ns/net", "ip", *arguments)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
