"""Other people's boxes between a run and its service, on free loopback ports: nginx, tinyproxy, microsocks, Dante.

In CI they must be installed; elsewhere a test that needs one which is not there is skipped, by its name.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trustme


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def program(name: str) -> str:
    """Where a tool is; skips the test, or fails it in CI, where it is not."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed: .ci/run does that")
        pytest.skip(f"{name} is not installed")
    return found


class Box:
    """A process that listens at `port`; it can be killed and started again."""

    def __init__(self, command: list[str], port: int, log: Path, host: str) -> None:
        self.port = port
        self._command, self._log, self._host = command, log, host
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it wrote of its connections."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(1000):
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._command[0]} ended with {self._process.returncode}: {self.log}")
            try:
                socket.create_connection((self._host, self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise RuntimeError(f"{self._command[0]} does not listen")

    def kill(self) -> None:
        """End it and its workers at once, with all their connections."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


Making = Callable[..., AbstractContextManager[Box]]
"""Starts a box with its files in a folder."""


@contextmanager
def _running(command: list[str], port: int, log: Path, host: str = "127.0.0.1") -> Iterator[Box]:
    box = Box(command, port, log, host)
    try:
        yield box
    finally:
        box.kill()


@contextmanager
def tinyproxy(folder: Path, *, login: str = "", host: str = "127.0.0.1") -> Iterator[Box]:
    """An HTTP proxy; `login` as "name password"."""
    port = free_port()
    config, log = folder / f"tinyproxy-{port}.conf", folder / f"tinyproxy-{port}.log"
    config.write_text(
        f"Port {port}\nListen {host}\nTimeout 600\nMaxClients 500\nAllow {host}\nLogLevel Connect\n"
        + (f"BasicAuth {login}\n" if login else "")
    )
    with _running([program("tinyproxy"), "-d", "-c", str(config)], port, log, host) as box:
        yield box


@contextmanager
def microsocks(folder: Path, *, login: str = "", host: str = "127.0.0.1") -> Iterator[Box]:
    """A SOCKS5 proxy; `login` as "name password"."""
    port = free_port()
    flags = ["-u", login.split()[0], "-P", login.split()[1]] if login else []
    command = [program("microsocks"), "-i", host, "-p", str(port), *flags]
    with _running(command, port, folder / f"microsocks-{port}.log", host) as box:
        yield box


@contextmanager
def dante(folder: Path, *, rules: str = "") -> Iterator[Box]:
    """A SOCKS5 proxy with rules: what `rules` do not block is passed on."""
    port = free_port()
    config, log = folder / f"danted-{port}.conf", folder / f"danted-{port}.log"
    config.write_text(
        f"logoutput: {log}\ninternal: 127.0.0.1 port = {port}\nexternal: 127.0.0.1\n"
        "clientmethod: none\nsocksmethod: none\n"
        "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 }\n"
        f"{rules}\nsocks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 log: connect }}\n"
    )
    with _running([program("danted"), "-f", str(config)], port, log) as box:
        yield box


@contextmanager
def nginx(folder: Path, server: str) -> Iterator[Box]:
    """A web server; `server` is the inside of its server block, with its address as `$listen`."""
    port = free_port()
    config, log = folder / f"nginx-{port}.conf", folder / f"nginx-{port}.log"
    places = "".join(
        f"{name}_temp_path {folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {folder}/nginx-{port}.pid; error_log {log};\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log {log}; {places}\n"
        f"server {{ {server.replace('$listen', f'127.0.0.1:{port}').replace('$port', str(port))} }} }}\n"
    )
    with _running([program("nginx"), "-c", str(config), "-e", str(log)], port, log) as box:
        yield box


class Company:
    """A certificate authority of its own: its root certificate, in PEM, is `bundle`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._root = folder, trustme.CA()
        self.bundle = folder / "company-root.pem"
        self._root.cert_pem.write_to_path(self.bundle)

    def tls(self, *names: str) -> str:
        """Settings of nginx for TLS under these names."""
        issued = self._root.issue_cert(*names)
        chain, key = self._folder / f"{names[0]}.pem", self._folder / f"{names[0]}.key"
        issued.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
        return _tls(chain, key)


def careless_company(folder: Path) -> tuple[Path, str]:
    """A root certificate, and nginx's settings with one for localhost, as some boxes make them: fields are missing."""
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=none\nsubjectKeyIdentifier=none\n")
    files = {name: folder / f"careless-{name}" for name in ("ca.key", "ca.pem", "key", "csr", "pem")}
    new = f"req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {files['key']} -out {files['csr']}"
    root = f"req -x509 -newkey rsa:2048 -nodes -subj /CN=Box -days 9 -keyout {files['ca.key']} -out {files['ca.pem']}"
    sign = f"x509 -req -in {files['csr']} -CA {files['ca.pem']} -CAkey {files['ca.key']} -CAcreateserial -days 9"
    for command in (root, new, f"{sign} -out {files['pem']} -extfile {extensions}"):
        subprocess.run([program("openssl"), *command.split()], check=True, capture_output=True, timeout=60)
    return files["ca.pem"], _tls(files["pem"], files["key"])


def _tls(chain: Path, key: Path) -> str:
    return f"listen $listen ssl; ssl_certificate {chain}; ssl_certificate_key {key};"
