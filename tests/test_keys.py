"""A key is read from where the job says that it is, and what is wrong with it is told without it."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from chinese import said_in_chinese
from commands import UNLIMITED, Ran, small_job
from google_accounts import account_file
from serving import served

from jobs import make_job
from pipeline.errors import PipelineError
from pipeline.job import Job, key_of
from pipeline.keys import Origin, dotenv, origin_of, read, stores
from pipeline.keys.diagnosis import cure_of, diagnose, remark
from pipeline.providers.failures import classify
from pipeline.quota.stops import stopped_by

KEY = "AQ.Ab8-of-the-tests-0123456789"
GOOGLE = "https://generativelanguage.googleapis.com"
RELAY = "https://relay.example/gemini"


def refused(act: Callable[[], object]) -> PipelineError:
    with pytest.raises(PipelineError) as found:
        act()
    assert KEY not in found.value.message + found.value.hint
    said_in_chinese(found.value)
    return found.value


@pytest.fixture
def job(here: Path) -> Job:
    """A job in a directory of its own, with another directory to be in."""
    (here / "elsewhere").mkdir()
    (here / "elsewhere/topics.csv").write_text("topic\na\n")
    return make_job(here / "elsewhere")


# --- the environment, and `.env` --------------------------------------------------------------------------------------


def test_variables_are_looked_up_in_order(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GEMINI_API_KEY and GOOGLE_API_KEY are both unset" in refused(lambda: key_of(job)).message
    monkeypatch.setenv("GOOGLE_API_KEY", "second")
    assert key_of(job).value == "second"
    monkeypatch.setenv("GEMINI_API_KEY", " first\n")
    assert key_of(job).value == "first"
    monkeypatch.setenv("GEMINI_API_KEY", "  ")
    assert key_of(job).value == "second"


@pytest.mark.parametrize("endpoint", [{"key_env": "MY_KEY"}, {"key": "env:MY_KEY"}])
def test_a_named_variable_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: dict[str, str]
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "not this one")
    named = make_job(tmp_path, endpoint=endpoint)
    error = refused(lambda: key_of(named))
    assert error.message == "no API key: MY_KEY is unset"
    assert 'GEMINI_API_KEY is set: `[endpoint] key_env = "GEMINI_API_KEY"`' in error.hint
    assert "export MY_KEY=" in error.hint and "--offline" in error.hint
    monkeypatch.setenv("MY_KEY", "mine")
    assert key_of(named).value == "mine"


def test_no_key_of_another_service_is_named_to_be_sent_to_a_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    for endpoint in (
        {"provider": "openai", "base_url": "https://relay.example/v1", "key_env": "MINE"},
        {"base_url": "https://relay.example", "key_env": "MINE"},
        {"provider": "openai"},
        {"provider": "vertex", "key_env": "MINE"},
    ):
        hint = refused(partial(key_of, make_job(tmp_path, endpoint=endpoint))).hint
        assert "GEMINI_API_KEY" not in hint and "export " in hint
    google = {"provider": "openai", "base_url": "https://generativelanguage.googleapis.com/v1beta/openai"}
    assert "GEMINI_API_KEY is set" in refused(lambda: key_of(make_job(tmp_path, endpoint=google))).hint


def test_a_variable_of_nearly_the_name_is_pointed_at(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_APIKEY", KEY)
    assert "GEMINI_APIKEY is set" in refused(lambda: key_of(job)).hint


def test_the_environment_wins_over_the_file_beside_the_job_and_that_over_the_one_here(
    job: Job, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / ".env").write_text("GEMINI_API_KEY=here\n")
    assert key_of(job).value == "here" and key_of(job).where == "GEMINI_API_KEY in .env"
    (here / "elsewhere/.env").write_text("GOOGLE_API_KEY=beside\n")
    assert key_of(job).value == "beside"
    monkeypatch.setenv("GOOGLE_API_KEY", "set")
    assert key_of(job).value == "set"


def test_nothing_of_the_file_comes_into_the_environment(job: Job, here: Path) -> None:
    (here / ".env").write_text("GEMINI_API_KEY=mine\nHTTPS_PROXY=http://127.0.0.1:1\n")
    before = dict(os.environ)
    assert key_of(job).value == "mine" and dict(os.environ) == before


FORMS = {
    "plain": f"A=b\nGEMINI_API_KEY={KEY}\n",
    "last line without an end": f"GEMINI_API_KEY={KEY}",
    "spaces": f"  GEMINI_API_KEY = {KEY}  \n",
    "export": f"export GEMINI_API_KEY={KEY}\n",
    "double quotes": f'GEMINI_API_KEY="{KEY}"\n',
    "single quotes": f"GEMINI_API_KEY='{KEY}' # mine\n",
    "comment": f"GEMINI_API_KEY={KEY} # mine\n",
    "commented out before": f"#GEMINI_API_KEY=old\nGEMINI_API_KEY={KEY}\n",
    "twice": f"GEMINI_API_KEY=old\nGEMINI_API_KEY={KEY}\n",
    "CRLF": f"A=b\r\nGEMINI_API_KEY={KEY}\r\n",
    "CR": f"A=b\rGEMINI_API_KEY={KEY}\r",
    "BOM": f"\ufeffGEMINI_API_KEY={KEY}\n",
    "a name that begins alike": f"GEMINI_API_KEY_OLD=old\nGEMINI_API_KEY={KEY}\nMY_GEMINI_API_KEY=other\n",
    "quotes of another variable that do not end": f'A="b\nGEMINI_API_KEY={KEY}\n',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_file_is_read_in_every_usual_form(job: Job, here: Path, text: str) -> None:
    (here / ".env").write_bytes(text.encode())
    assert key_of(job).value == KEY


ODD = {
    "blank": (b"GEMINI_API_KEY=\n", ".env, line 1: GEMINI_API_KEY is blank"),
    "only a comment": (b"GEMINI_API_KEY= # later\n", ".env, line 1: GEMINI_API_KEY is blank"),
    "open quotes": (f'\nGEMINI_API_KEY="{KEY}\n'.encode(), ".env, line 2: the quotes of GEMINI_API_KEY do not end"),
    "YAML": (f"GEMINI_API_KEY: {KEY}\n".encode(), ".env, line 1 has GEMINI_API_KEY, but not as GEMINI_API_KEY=…"),
    "UTF-16": (f"GEMINI_API_KEY={KEY}\n".encode("utf-16"), ".env is not UTF-8"),
    "UTF-16 without a mark": (f"GEMINI_API_KEY={KEY}\n".encode("utf-16-le"), ".env is not UTF-8"),
    "latin-1": (f"A=\xe9\nGEMINI_API_KEY={KEY}\n".encode("latin-1"), ".env is not UTF-8"),
}


@pytest.mark.parametrize(("raw", "said"), ODD.values(), ids=ODD)
def test_a_file_that_gives_no_key_is_named_with_its_line(job: Job, here: Path, raw: bytes, said: str) -> None:
    (here / ".env").write_bytes(raw)
    assert said in refused(lambda: key_of(job)).message


def test_what_is_no_file_is_not_waited_for(job: Job, here: Path) -> None:
    place = here / ".env"
    os.mkfifo(place)
    assert ".env is no plain file" in refused(lambda: key_of(job)).message
    place.unlink()
    place.mkdir()  # a virtual environment
    assert ".env" not in refused(lambda: key_of(job)).message
    place.rmdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        assert ".env cannot be read" in refused(lambda: key_of(job)).message
    place.unlink()
    with place.open("wb") as file:
        file.truncate(100_000_000)
    assert ".env is larger than 1 MB" in refused(lambda: key_of(job)).message
    place.unlink()
    place.symlink_to(place)
    assert ".env cannot be read" in refused(lambda: key_of(job)).message


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, here: Path) -> None:
    place = here / ".env"
    place.write_text(f"GEMINI_API_KEY={KEY}")
    place.chmod(0o644)
    assert [each for each in dotenv.exposed(place) if "chmod 600" in each and "mode 644" in each]
    place.chmod(0o600)
    assert dotenv.exposed(place) == []


def test_a_file_that_git_has_or_would_take_is_warned_of(here: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(here), *arguments], check=True, capture_output=True)

    place = here / ".env"
    place.write_text(f"GEMINI_API_KEY={KEY}")
    place.chmod(0o600)
    git("init", "-q")
    assert "git does not ignore" in dotenv.exposed(place)[0]
    (here / ".gitignore").write_text(".env\n")
    assert dotenv.exposed(place) == []
    git("add", "-f", ".env")
    assert "git tracks" in dotenv.exposed(place)[0]


def test_a_run_takes_the_key_from_the_file_warns_once_and_keeps_it_nowhere(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / ".env").write_text(f"GEMINI_API_KEY={KEY}")
    (here / ".env").chmod(0o640)
    small_job(here, UNLIMITED)
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        ran = cli("run", "small.toml", "--yes")
    assert ran.code == 0 and KEY not in ran.out + ran.err and ran.err.count("chmod 600 .env") == 1
    events = [json.loads(line) for line in (here / "runs/small/run.log").read_text().splitlines()]
    assert [each["message"] for each in events if each["event"] == "key"] == [
        ".env can be read by others on this machine (mode 640): `chmod 600 .env`"
    ]
    others = [path for path in here.rglob("*") if path.is_file() and path.name != ".env"]
    assert not [path for path in others if KEY.encode() in path.read_bytes()]


# --- stores of secrets ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    yield
    stores.from_keyring.cache_clear()
    stores.from_secret_manager.cache_clear()


@pytest.fixture
def keyring() -> Iterator[Any]:
    library = pytest.importorskip("keyring")
    before = library.get_keyring()
    yield library
    library.set_keyring(before)


def test_a_key_in_the_keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyring: Any) -> None:
    place, in_a_file = origin_of("keyring:gemini/a user", (), tmp_path), pytest.importorskip("keyrings.alt.file")
    monkeypatch.setattr(in_a_file.PlaintextKeyring, "file_path", str(tmp_path / "keyring.cfg"))
    keyring.set_keyring(in_a_file.PlaintextKeyring())
    assert "`keyring set gemini 'a user'`" in refused(lambda: read(place)).hint
    keyring.set_password("gemini", "a user", f"{KEY}\n")
    assert read(place).value == KEY and read(place).where == "keyring:gemini/a user"
    keyring.set_password("gemini", "a user", "another")
    assert read(place).value == KEY, "it is asked once"
    assert read(place, again=True).value == "another"


def test_a_keyring_that_cannot_be_asked(tmp_path: Path, keyring: Any) -> None:
    keyring.set_keyring(pytest.importorskip("keyring.backends.fail").Keyring())
    assert "the keyring cannot be asked" in refused(lambda: read(Origin("keyring", ("a/b",), tmp_path))).message


@pytest.mark.parametrize(
    ("key", "module", "extra"),
    [("keyring:a/b", "keyring", "keyring<"), ("gcp-secret:projects/p/secrets/s", "google.auth", "google-auth<")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert extra in refused(lambda: read(origin_of(key, (), tmp_path))).hint


class SecretManager(BaseHTTPRequestHandler):
    """Google's token endpoint and the one route of Secret Manager, as its REST reference describes them."""

    answers: ClassVar[dict[str, tuple[int, Any]]] = {}
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(200, {"access_token": "ya29.of-the-tests", "expires_in": 3600, "token_type": "Bearer"})

    def do_GET(self) -> None:
        self.asked.append(self.path)
        assert self.headers["authorization"] == "Bearer ya29.of-the-tests"
        self._send(*self.answers.get(self.path, (404, {"error": {"code": 404, "status": "NOT_FOUND"}})))

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """The test's own streams stay clean."""


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[SecretManager]]:
    """Secret Manager on this machine, and an account that google-auth signs in there with."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SecretManager) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        account_file(tmp_path / "account.json", f"{url}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.setattr(stores, "SECRET_MANAGER", url)
        SecretManager.answers, SecretManager.asked = {}, []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield SecretManager
        finally:
            server.shutdown()
            thread.join()


def _secret(text: bytes) -> dict[str, Any]:
    return {"name": "projects/1/secrets/s/versions/1", "payload": {"data": base64.b64encode(text).decode()}}


def test_a_key_in_secret_manager(tmp_path: Path, manager: type[SecretManager]) -> None:
    manager.answers["/v1/projects/p/secrets/s/versions/latest:access"] = 200, _secret(f"{KEY}\n".encode())
    manager.answers["/v1/projects/p/secrets/s/versions/7:access"] = 200, _secret(b"seventh")
    latest = origin_of("gcp-secret:projects/p/secrets/s", (), tmp_path)
    assert read(latest).value == KEY and read(latest).where == "gcp-secret:projects/p/secrets/s"
    assert len(manager.asked) == 1, "it is asked once"
    assert read(latest, again=True).value == KEY and len(manager.asked) == 2
    assert read(origin_of("gcp-secret:projects/p/secrets/s/versions/7", (), tmp_path)).value == "seventh"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((403, {"error": {"code": 403, "message": "Permission denied", "status": "PERMISSION_DENIED"}}), "refuses"),
        ((404, {"error": {"code": 404, "status": "NOT_FOUND"}}), "has no projects/p/secrets/s/versions/latest"),
        ((400, {"error": {"code": 400, "status": "FAILED_PRECONDITION"}}), "answers HTTP 400"),
        ((200, {"payload": {"data": "!"}}), "is no text"),
        ((200, _secret(b"\xff\xfe")), "is no text"),
        ((200, _secret(b" \n")), "is blank"),
        ((200, []), "is no text"),
    ],
)
def test_a_secret_that_is_not_to_be_had(
    tmp_path: Path, manager: type[SecretManager], answer: tuple[int, Any], said: str
) -> None:
    manager.answers["/v1/projects/p/secrets/s/versions/latest:access"] = answer
    place = origin_of("gcp-secret:projects/p/secrets/s", (), tmp_path)
    assert said in refused(lambda: read(place)).message


def test_no_account_for_secret_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    place = origin_of("gcp-secret:projects/p/secrets/s", (), tmp_path)
    error = refused(lambda: read(place))
    assert "no access" in error.message and "gcloud auth application-default login" in error.hint


# --- what is wrong with a key -----------------------------------------------------------------------------------------

BROKEN = {
    "blank": (" \n", GOOGLE, "is blank"),
    "double quotes": (f'"{KEY}"', GOOGLE, "quotes around"),
    "typographic quotes": (f"“{KEY}”", GOOGLE, "quotes around"),
    "one quote": (f"{KEY}'", GOOGLE, "quotes around"),
    "a space": (f"{KEY[:9]} {KEY[9:]}", GOOGLE, "a space in the key"),
    "a line break": (f"{KEY[:9]}\n{KEY[9:]}", GOOGLE, "a line break in the key"),
    "a tab": (f"{KEY[:9]}\t{KEY[9:]}", GOOGLE, "a tab in the key"),
    "a byte order mark": (f"\ufeff{KEY}", GOOGLE, "a byte order mark"),
    "a zero-width space": (f"{KEY}\u200b", GOOGLE, "a zero-width character"),
    "a no-break space": (f"{KEY[:9]}\u00a0{KEY[9:]}", GOOGLE, "a space that does not break"),
    "a long dash": (KEY.replace("-", "–"), GOOGLE, "characters in the key that no key has"),
    "Bearer": (f"Bearer {KEY}", GOOGLE, "`Bearer` before"),
    "a header": (f"x-goog-api-key: {KEY}", GOOGLE, "a header's name before"),
    "the variable's name": ("GEMINI_API_KEY", GOOGLE, "the name of a variable"),
    "another variable's name": ("MY_RELAY_KEY", RELAY, "the name of a variable"),
    "an assignment": (f"GEMINI_API_KEY={KEY}", GOOGLE, "`NAME=` before"),
    "unexpanded": ("$GEMINI_API_KEY", GOOGLE, "a variable that nothing filled in"),
    "unexpanded in braces": ("${GEMINI_API_KEY}", RELAY, "a variable that nothing filled in"),
    "unexpanded on Windows": ("%GEMINI_API_KEY%", GOOGLE, "a variable that nothing filled in"),
    "of OpenAI": ("sk-proj-0123456789abcdef", GOOGLE, "a key of OpenAI, and generativelanguage.googleapis.com takes"),
    "of OpenRouter": ("sk-or-v1-0123456789abcdef", GOOGLE, "a key of OpenRouter"),
    "of Google": ("AIzaSyB0123456789", "https://api.openai.com/v1", "a key of Google, and api.openai.com takes OpenAI"),
    "an access token": ("ya29.a0123456789", GOOGLE, "an access token"),
    "a placeholder": ("your-api-key", GOOGLE, "a placeholder"),
    "a placeholder in capitals": ("YOUR_GEMINI_API_KEY_HERE", GOOGLE, "a placeholder"),
    "a placeholder in brackets": ("<your key>", GOOGLE, "a placeholder"),
    "a shortened one": ("AIza...", GOOGLE, "a placeholder"),
    "dots": ("…", GOOGLE, "a placeholder"),
    "crosses": ("AIzaSyxxxxxxxxxxxxxxxx", GOOGLE, "a placeholder"),
    "a whole file": ("x" * 1_000_000, GOOGLE, "no key is that long"),
    "a file of credentials": ('{"type": "service_account"}', GOOGLE, "a file of credentials"),
}


@pytest.mark.parametrize(("value", "base_url", "said"), BROKEN.values(), ids=BROKEN)
def test_a_key_as_people_break_it(value: str, base_url: str, said: str) -> None:
    trouble = diagnose(value, "MY_VARIABLE", base_url, ("GEMINI_API_KEY",))
    assert trouble and said in trouble.what and trouble.what.startswith("MY_VARIABLE ") and trouble.cure
    assert len(value) < 12 or value not in trouble.what + trouble.cure


@pytest.mark.parametrize(
    ("value", "base_url"),
    [
        (KEY, GOOGLE),
        ("AIzaSyB0123456789-abcdefghijklmnopqrst", GOOGLE),
        (KEY, "https://europe-west4-aiplatform.googleapis.com"),
        ("sk-0123456789abcdef", RELAY),
        ("sk-0123456789abcdef", "https://api.openai.com/v1"),
        ("your-api-key", RELAY),
        ("some-key", GOOGLE),
        ("c29tZSBrZXkgb2YgYSByZWxheQ==", RELAY),
        ("test", "http://127.0.0.1:8089"),
        ("my_" + "a_" * 2_000 + "!", GOOGLE),
        ("x" * 4_000 + "!", GOOGLE),
    ],
)
def test_a_key_that_may_be_good_is_left_to_the_service(value: str, base_url: str) -> None:
    assert diagnose(value, "MY_VARIABLE", base_url, ("GEMINI_API_KEY",)) is None


def test_an_old_style_key_is_remarked_on_and_not_refused() -> None:
    assert "AQ." in remark("AIzaSyB0123456789", GOOGLE)
    assert remark("AIzaSyB0123456789", RELAY) == remark(KEY, GOOGLE) == ""


def test_a_broken_key_stops_a_run_before_anything_is_sent(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", f'"{KEY}"')
    ran = cli("run", small_job(here, UNLIMITED), "--yes")
    assert ran.code == 2 and "GEMINI_API_KEY has quotes around the key" in ran.err and KEY not in ran.err
    assert "hint: leave the quotes out" in ran.err and not (here / "runs").exists()


# --- a key that a service refuses: bodies as they came ----------------------------------------------------------------


def _google(code: int, message: str, status: str, reason: str = "") -> dict[str, Any]:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}
    return {"error": {"code": code, "message": message, "status": status, **({"details": [info]} if reason else {})}}


_DENIED = "PERMISSION_DENIED"
_PLACE = "//aiplatform.googleapis.com/projects/p/locations/l/publishers/google/models/m"
REFUSED: dict[str, tuple[int, Any, str]] = {
    "Vertex AI: no permission": (
        403,
        _google(403, f"Permission 'aiplatform.endpoints.predict' denied on resource '{_PLACE}'.", _DENIED),
        "roles/aiplatform.user",
    ),
    "Vertex AI: not enabled": (
        403,
        _google(403, "Vertex AI API has not been used in project 1 before or it is disabled.", _DENIED),
        "library/aiplatform.googleapis.com",
    ),
    "Vertex AI: another kind of key": (
        401,
        _google(401, "API keys are not supported by this API. Expected OAuth2 access token", "UNAUTHENTICATED"),
        "express mode",
    ),
    "Vertex AI: a token that ended": (
        401,
        _google(401, "Request had invalid authentication credentials.", "UNAUTHENTICATED", "ACCESS_TOKEN_EXPIRED"),
        "gcloud auth application-default login",
    ),
    "E1": (
        400,
        _google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT", "API_KEY_INVALID"),
        "copy the key again",
    ),
    "E1, expired": (
        400,
        _google(400, "API key expired. Please renew the API key.", "INVALID_ARGUMENT", "API_KEY_INVALID"),
        "expired: renew it",
    ),
    "E1, deleted": (
        400,
        _google(400, "API Key not found. Please pass a valid API key.", "INVALID_ARGUMENT", "API_KEY_INVALID"),
        "was deleted",
    ),
    "E2": (
        403,
        _google(
            403,
            "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or"
            " other form of API consumer identity to call this API.",
            _DENIED,
        ),
        "did not arrive",
    ),
    "E10": (
        400,
        [_google(400, "User location is not supported for the API use.", "FAILED_PRECONDITION")],
        "HTTPS_PROXY",
    ),
    "E17": (
        401,
        _google(
            401,
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid"
            " authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
            "UNAUTHENTICATED",
            "ACCESS_TOKEN_TYPE_UNSUPPORTED",
        ),
        "old-style one",
    ),
    "E18, disabled": (
        403,
        _google(
            403,
            "Gemini API has not been used in project 123 before or it is disabled. Enable it by visiting"
            " https://console.developers.google.com/apis/api/generativelanguage.googleapis.com/overview then retry.",
            _DENIED,
            "SERVICE_DISABLED",
        ),
        "enable it for the key's project",
    ),
    "E18, blocked": (
        403,
        _google(
            403,
            "Requests to this API generativelanguage.googleapis.com method"
            " google.ai.generativelanguage.v1beta.GenerativeService.GenerateContent are blocked.",
            _DENIED,
            "API_KEY_SERVICE_BLOCKED",
        ),
        "`Generative Language API`",
    ),
    "E18, suspended": (
        403,
        _google(403, f"Permission denied: Consumer 'api_key:{KEY}' has been suspended.", _DENIED, "CONSUMER_SUSPENDED"),
        "has suspended the project",
    ),
    "E18, web page": (
        403,
        _google(403, "Requests from referer <empty> are blocked.", _DENIED, "API_KEY_HTTP_REFERRER_BLOCKED"),
        "restricted to a web page",
    ),
    "E18, Android": (
        403,
        _google(
            403,
            "Requests from this Android client application <empty> are blocked.",
            _DENIED,
            "API_KEY_ANDROID_APP_BLOCKED",
        ),
        "restricted to a web page, an app",
    ),
    "E18, iOS": (
        403,
        _google(
            403, "Requests from this iOS client application <empty> are blocked.", _DENIED, "API_KEY_IOS_APP_BLOCKED"
        ),
        "restricted to a web page, an app",
    ),
    "E18, leaked": (
        403,
        _google(403, "Your API key was reported as leaked. Please use another API key.", _DENIED),
        "found the key in public",
    ),
    "E18, denied": (
        403,
        _google(403, "Your project has been denied access. Please contact support.", _DENIED),
        "denies the project access",
    ),
    "E18, billing country": (
        403,
        _google(
            403, "Access to generativelanguage.googleapis.com is restricted from your billing country CN.", _DENIED
        ),
        "country of the project's billing account",
    ),
    "two credentials": (
        400,
        [_google(400, "Multiple authentication credentials received. Please pass only one.", "INVALID_ARGUMENT")],
        "a second key or token",
    ),
    "OpenAI": (
        401,
        {
            "error": {
                "message": "Incorrect API key provided: sk-0123456789abcdef. You can find your API key at"
                " https://platform.openai.com/account/api-keys.",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_api_key",
            }
        },
        "[endpoint] base_url is the service",
    ),
    "a relay": (401, {"error": {"message": "无效的令牌", "type": "new_api_error"}}, "copy the key again"),
    "a relay, expired": (
        401,
        {"error": {"message": "该令牌已过期", "type": "new_api_error"}},
        "no longer takes the key",
    ),
}


@pytest.mark.parametrize(("status", "body", "cure"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_ends_with_its_cure(status: int, body: Any, cure: str) -> None:
    failure = classify(status, {}, json.dumps(body).encode(), secret=KEY)
    assert failure.kind == "auth"
    error = stopped_by(failure)
    assert cure in error.hint and KEY not in error.message + error.hint


def test_a_refusal_in_unknown_words_leads_to_the_check() -> None:
    assert cure_of("HTTP 403: no") == ""
    assert "`pipeline check JOB`" in stopped_by(classify(403, {}, b"no")).hint
