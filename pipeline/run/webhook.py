"""Posts to the job's webhook what a person should hear: beside the run, which it neither delays nor ends."""

import asyncio
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import anyio
import httpx
import orjson

from pipeline.errors import JobError, PipelineError
from pipeline.events import Event, Notify, PostFailed
from pipeline.job import Job
from pipeline.keys import Key, origin_of, read
from pipeline.meanwhile import meanwhile
from pipeline.providers.hosts import is_host
from pipeline.providers.transport import Lost, Response, Wire
from pipeline.run.prepare import Session
from pipeline.run.signing import Signed, signed
from pipeline.run.status import Status
from pipeline.run.ways import network_of
from pipeline.sections.alerts import PostFormat, address_trouble

POST_S = 5.0
"""For one post, and for those that are left at the end of a run."""
_AGAIN_S = (5.0, 30.0)  # after which what provably did not leave is posted once more
_HEADERS = httpx.Headers({"content-type": "application/json; charset=utf-8", "user-agent": "prompt-pipeline"})
_MOST_WORDS = 200  # letters of an answer that says what was wrong
_MOST_READ = 2**16  # bytes of it that are looked through for what is secret
_TOKEN = 12  # letters from which on a part of an address may be what is secret of it
_FEISHU_SIGN, _DINGTALK_RULES = 19021, 310000  # not signed, or not as it should be; of DingTalk other rules too

POST_KEYS: Mapping[str, str] = {
    "text": "all of it in one line, for a person",
    "event": "`alert`; `paused`: the run sleeps until the day's quota resets; and at its end `finished`, `paused`,"
    " `interrupted` or `needs_you`",
    "alert": "of an alert what it is about: `errors`, `truncated`, `budget`, `day_budget`, `month_budget`,"
    " `day_quota`, `latency`, `stalled`; else null",
    "job": "name of the job",
    "run": "name of the run directory",
    "rehearsal": "true where the emulator answers",
    "at": "when it was, ISO 8601, UTC",
    "rows": "rows that the run covers",
    "rows_done": "those of them with an outcome",
    "outcomes": "rows by status",
    "calls": "calls that have an answer",
    "cost_usd": "USD paid so far; null where a price is unknown",
    "until": "when it goes on, or can be continued, ISO 8601, UTC; null where nobody knows",
    "exit_code": "of a run that has ended; else null",
}
"""The fields of a post with `format = "json"`; these names stay."""

_BODIES: Mapping[PostFormat, Callable[[Mapping[str, object]], Mapping[str, object]]] = {
    "json": lambda told: told,
    "slack": lambda told: {"text": told["text"]},
    "feishu": lambda told: {"msg_type": "text", "content": {"text": told["text"]}},
    "dingtalk": lambda told: {"msgtype": "text", "text": {"content": told["text"]}},
    "discord": lambda told: {"content": told["text"]},
}


def nobody_hears(event: Event) -> None:
    """Who listens while no run directory is open."""


@dataclass(frozen=True, slots=True)
class Hook:
    """Where posts go, and the secret that signs them, if any: both are secret."""

    url: httpx.URL = field(repr=False)
    secret: str = field(default="", repr=False)


def hook_of(job: Job) -> Hook | None:
    """Where the job has alerts posted; None: nowhere. Raises `JobError` for what is unset or no address."""
    alerts, named_by = job.spec.alerts, "[alerts] webhook"
    url, secret = alerts.webhook, ""
    if alerts.webhook_env is not None:
        found = _held(job, "webhook_env", alerts.webhook_env, "https://…")
        url, named_by = found.value, f"[alerts] webhook_env: what {found.where} holds"
    if url is None:
        return None
    if alerts.webhook_secret_env is not None:
        held = _held(job, "webhook_secret_env", alerts.webhook_secret_env, "…")
        secret = held.value
        if not secret.isprintable():  # among others what is no UTF-8
            raise JobError(f"[alerts] webhook_secret_env: what {held.where} holds is no text", "copy it again")
    trouble = address_trouble(url)
    if not trouble:
        with suppress(httpx.InvalidURL, UnicodeError):  # the latter of a host that cannot be written in ASCII
            if is_host((address := httpx.URL(url)).raw_host.decode()):
                return Hook(address, secret)
        trouble = "it is no address"
    raise JobError(f"{named_by} cannot be used: {trouble}")


def _held(job: Job, setting: str, name: str, example: str) -> Key:
    try:
        return read(origin_of(None, (name,), job.path.parent))
    except JobError:
        hint = f"`export {name}={example}`, or a line of a `.env` file beside the job; or leave {setting} out"
        raise JobError(f"[alerts] {setting}: {name} is unset", hint) from None


class Posts:
    """What is to be posted, one after the other; nobody waits for it before the end of the run."""

    def __init__(self, hook: Hook, session: Session, wire: Wire) -> None:
        self._hook, self._session, self._wire = hook, session, wire
        self._queue: asyncio.Queue[tuple[str, Mapping[str, object]]] = asyncio.Queue()
        self.on_trouble: Notify = nobody_hears
        self._has_ended = False
        self._closing = asyncio.Event()

    def tell(
        self, event: str, message: str, status: Status | None, alert: str | None = None, until_s: float | None = None
    ) -> None:
        """Have it posted; of a run that never began there is no status."""
        job, is_known = self._session.job, status is not None and not status.unpriced
        told = {
            "text": f"pipeline {job.name}{' (rehearsal)' * self._session.rehearsal}: {message}",
            "event": event,
            "alert": alert,
            "job": job.name,
            "run": self._session.directory.name,
            "rehearsal": self._session.rehearsal,
            "at": _moment(time.time()),
            "rows": status.rows if status else None,
            "rows_done": status.rows_done if status else None,
            "outcomes": dict(status.outcomes) if status else {},
            "calls": status.calls if status else None,
            "cost_usd": status.cost_usd if status and is_known else None,
            "until": _moment(until_s),
            "exit_code": status.exit_code if status else None,
        }
        self._queue.put_nowait((event, _BODIES[job.spec.alerts.format](told)))

    def alert(self, name: str, message: str, status: Status) -> None:
        """Post an alert."""
        self.tell("alert", f"alert: {message}", status, name.partition(":")[0])

    def paused(self, status: Status) -> None:
        """Post that the run sleeps."""
        until_s = status.waits_until_s
        why = f"paused{_until(until_s)}: the day's quota is used up; {_so_far(status)}; it goes on by itself"
        self.tell("paused", why, status, until_s=until_s)

    def ended(self, status: Status) -> None:
        """Post how the run ended."""
        self._has_ended = True
        event, message = ending(status)
        self.tell(event, message, status, until_s=status.goes_on_at_s)

    def failed(self, error: PipelineError) -> None:
        """Post what kept the run from its first call, or from its end."""
        if not self._has_ended:
            self.tell("needs_you", f"needs you: {error.message.splitlines()[0]}; {error.hint}".rstrip("; "), None)

    async def keep(self) -> None:
        """Post what comes, until cancelled."""
        while True:
            event, body = await self._queue.get()
            try:
                trouble = await self._delivered(body)
            except Exception as error:  # whatever it is, the run goes on
                trouble = f"an error of the program ({type(error).__name__})"
            if trouble:
                self.on_trouble(PostFailed(f"{event} was not posted: {trouble}"))
            self._queue.task_done()

    async def finish(self) -> None:
        """Wait until nothing is left to be posted, for `POST_S` at most; what is to be tried again is tried now."""
        self._closing.set()
        with anyio.move_on_after(POST_S, shield=True) as limit:
            await self._queue.join()
        if limit.cancelled_caught:
            self.on_trouble(PostFailed("the last was not posted in time"))

    async def _delivered(self, body: Mapping[str, object]) -> str:
        """Why it was not taken, without the address; empty where it was."""
        url, secret, form = self._hook.url, self._hook.secret, self._session.job.spec.alerts.format
        headers, login = _HEADERS, ""
        if url.userinfo:
            login = b64encode(f"{url.username}:{url.password}".encode()).decode()
            headers = httpx.Headers({**_HEADERS, "authorization": f"Basic {login}"})
        for pause_s in (*_AGAIN_S, None):
            post = signed(form, secret, url, body, time.time()) if secret else Signed(url, body)
            answer = await self._wire.post(post.url, headers, orjson.dumps(post.body), POST_S)
            if pause_s is None or not isinstance(answer, Lost) or answer.sent:
                break
            with anyio.move_on_after(pause_s):
                await self._closing.wait()
        return _trouble(answer, partial(_blotted, url=post.url, secrets=(secret, login)))


def ending(status: Status) -> tuple[str, str]:
    """What the end of a run is called, and what is said of it."""
    if status.state in ("finished", "sample", "pilot"):
        return "finished", f"{'the sample is ' if status.sample else ''}finished: {_so_far(status)}"
    reason = status.reason.splitlines()[0] if status.reason else ""
    if status.state == "left" or status.goes_on_at_s:
        event, when = "paused", _until(status.goes_on_at_s)
    else:
        event, when = "interrupted" if status.state == "interrupted" else "needs_you", ""
    why = "; ".join(filter(None, (reason, _so_far(status), "the same command goes on")))
    return event, f"{event.replace('_', ' ')}{when}: {why}"


def _so_far(status: Status) -> str:
    others = "".join(f", {number:,} {name}" for name, number in status.outcomes.items() if number and name != "ok")
    cost = f", ${status.cost_usd:,.2f}" + " and unknown prices" * bool(status.unpriced)
    return f"{status.outcomes.get('ok', 0):,} of {status.rows:,} rows ok{others}{cost}"


def _until(at_s: float | None) -> str:
    return "" if at_s is None else f" until {datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"


def _moment(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def _trouble(answer: Response | Lost, blotted: Callable[[str], str]) -> str:
    if isinstance(answer, Lost):
        return blotted(answer.message)
    told = answer.body[:_MOST_READ].decode("utf-8", "replace")
    if not 200 <= answer.status < 300:
        return f"HTTP {answer.status} {_words(blotted(told))}".strip()
    try:
        said = orjson.loads(answer.body)
    except ValueError:
        return ""
    # Feishu and DingTalk say in the body of a 200 that they did not take it.
    for code, words in (("code", "msg"), ("errcode", "errmsg")):
        if isinstance(said, dict) and words in said and said.get(code):
            why = blotted(str(said[words]))
            return f"refused: {_words(blotted(str(said[code])))} {_words(why)}{_advice(said[code], why)}"
    return ""


def _words(told: str) -> str:
    """The beginning, of what is blotted already: what is secret would be cut, and not be found."""
    return " ".join(told.split())[:_MOST_WORDS].rstrip()


def _advice(code: object, words: str) -> str:
    """What helps where a robot does not take a signature, or the want of one."""
    if code == _FEISHU_SIGN or (code == _DINGTALK_RULES and ("签名" in words or "sign" in words)):
        return "; `[alerts] webhook_secret_env` names the variable of the robot's secret"
    return ""


def _blotted(text: str, url: httpx.URL, secrets: Iterable[str]) -> str:
    """`text` without the parts of the address that may be secret, and without these."""
    parts = {str(url), url.raw_path.decode(), url.path, url.query.decode(), url.password, *secrets}
    words = {*url.path.split("/"), *(value for _, value in url.params.multi_items())}
    for part in sorted({*parts, *(word for word in words if len(word) >= _TOKEN)}, key=len, reverse=True):
        if len(part) > 1:
            text = text.replace(part, "…")
    return text


@asynccontextmanager
async def posting(session: Session) -> AsyncIterator[Posts | None]:
    """Post while it is open, and then what is left; None where the job names no webhook.

    Raises `PipelineError` for an address or a proxy that cannot be used.
    """
    try:
        hook = hook_of(session.job)
    except JobError:
        if not session.options.offline:  # a rehearsal needs no secrets
            raise
        hook = None
    if hook is None:
        yield None
        return
    async with Wire(network=network_of(session.job)) as wire:
        wire.prepare(hook.url)
        posts = Posts(hook, session, wire)
        async with meanwhile(posts.keep):
            try:
                yield posts
            finally:
                await posts.finish()
