"""A service account of Google's, and the servers on loopback that give it access tokens: google-auth talks to them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt
from playing import JsonHandler

AUDIENCE = "https://oauth2.googleapis.com/token"  # whatever token_uri says
EMAIL = "runner@project-of-a-test.iam.gserviceaccount.com"


@cache
def key() -> rsa.RSAPrivateKey:
    """One key for all tests of a process: making one takes 0.1 s."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def account_file(path: Path, token_uri: str) -> Path:
    """Write the file that GOOGLE_APPLICATION_CREDENTIALS names, of an account whose tokens come from `token_uri`."""
    form = serialization.PrivateFormat.PKCS8
    pem = key().private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    account = {
        "type": "service_account",
        "project_id": "project-of-a-test",
        "private_key_id": "k1",
        "private_key": pem.decode(),
        "client_email": EMAIL,
        "client_id": "1",
        "token_uri": token_uri,
    }
    path.write_text(json.dumps(account))
    return path


class TokenServer:
    """Gives `ya29.token-1`, `ya29.token-2` and so on to whoever shows the account's signature; `life_s` each.

    `instead` is asked first: a status and a body in place of a token, or None.
    """

    def __init__(self) -> None:
        self.given = 0
        self.life_s = 3600
        self.instead: Callable[[], tuple[int, object] | None] = lambda: None
        self.url = ""

    def answer(self, assertion: str) -> tuple[int, object]:
        if other := self.instead():
            return other
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public = key().public_key().public_bytes(serialization.Encoding.PEM, form)
        claims: dict[str, Any] = jwt.decode(assertion, certs=public, audience=AUDIENCE)  # type: ignore[no-untyped-call]
        assert claims["iss"] == EMAIL and claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
        self.given += 1
        token = f"ya29.token-{self.given}"
        return 200, {"access_token": token, "expires_in": self.life_s, "token_type": "Bearer"}


@contextmanager
def token_server() -> Iterator[TokenServer]:
    """A real one, at `url`."""
    service = TokenServer()

    class Answering(JsonHandler):
        def do_POST(self) -> None:
            asked = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            self.answer(*service.answer(asked["assertion"][0]))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    service.url = f"http://127.0.0.1:{server.server_port}/token"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def metadata_server() -> Iterator[str]:
    """Host and port of what answers on a machine of Google's: project, account and its tokens."""

    class Answering(JsonHandler):
        def do_GET(self) -> None:
            assert self.headers["metadata-flavor"] == "Google"
            if "/token" in self.path:
                self.answer(200, {"access_token": "ya29.of-the-machine", "expires_in": 3599, "token_type": "Bearer"})
            elif "/service-accounts/" in self.path:
                self.answer(200, {"email": EMAIL, "aliases": ["default"], "scopes": []})
            else:
                self.answer(200, "project-of-a-test")

        def end_headers(self) -> None:
            self.send_header("metadata-flavor", "Google")
            self.send_header("content-type", "application/json")
            super().end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
