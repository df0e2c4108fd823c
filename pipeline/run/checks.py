"""Everything that can be wrong with a job before it costs, one step after the other; what fails stops no other step."""

import difflib
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import anyio.to_thread

from pipeline.budget.book import SpendBook
from pipeline.cache import shelf_of
from pipeline.documents.collecting import UNFIT
from pipeline.environment import check_certificates
from pipeline.errors import PipelineError, RunStateError
from pipeline.job import Job, compiled, key_of, read_job, with_input_alone
from pipeline.keys import Key
from pipeline.keys.diagnosis import cure_of, is_of_country, remark
from pipeline.models import MODELS
from pipeline.places import Kind, quota_file, spend_file
from pipeline.protocols import GLOBAL
from pipeline.providers.base import Account
from pipeline.providers.connection import checked_url
from pipeline.providers.failures import unanswered
from pipeline.providers.google_auth import google_tokens
from pipeline.providers.networks import Network
from pipeline.quota.book import QuotaBook, read_known
from pipeline.quota.daily import day_of, until_text
from pipeline.quota.stops import refused_by_proxy
from pipeline.records import Failure
from pipeline.run.fitting import ignored, life
from pipeline.run.generations import changed
from pipeline.run.guards import refuse_unpriced
from pipeline.run.output import output_place
from pipeline.run.prepare import (
    METERS,
    Options,
    Session,
    check_cells,
    check_columns,
    check_model,
    check_output,
    open_input,
    prepared,
)
from pipeline.run.replaced import with_replaced
from pipeline.run.services import SPEAKERS, asked_at, one_kind, project_at, targets_of, wire_over
from pipeline.run.steps import Step, Steps
from pipeline.run.strays import batches_step
from pipeline.run.ways import network_of
from pipeline.run.webhook import hook_of
from pipeline.sections import PromptSection
from pipeline.source import output_conflict
from pipeline.source.folders import described
from pipeline.store.reserve import check_room
from pipeline.targets import Target


async def examine(path: Path, flags: Mapping[str, object], options: Options, forget: bool = False) -> Steps:
    """Look at all of a job, as `flags` change it. With `forget` what earlier runs learned of its quota is forgotten."""
    steps = Steps()
    job, is_whole = _job(steps, path, flags)
    if job is None:
        steps.skips("template")
        await anyio.to_thread.run_sync(_input_alone, steps, path)
        steps.skips("columns", "limits", "key", "network", "country", "model", "output", "run")
        return steps
    session = await anyio.to_thread.run_sync(_table, steps, job, options, is_whole)
    kinds: dict[str, Kind] = {}
    for name, each in [(section.name, each) for section, each in job.targets] or [("", job)]:
        of_target = Steps()
        _limits(of_target, each)
        if kind := await _service(of_target, each, options.offline):
            kinds[name] = kind
        if session and kind and of_target.passed and not options.offline:
            with of_target.trying("quota"):
                of_target += _quota(replace(session, kind=kind), name, forget)
        steps += [replace(step, target=name) for step in of_target]
    if session is None:
        steps.skips("output", "run")
        return steps
    with steps.trying("network"):
        kind = one_kind(kinds or {"": "real"})
        session = session if options.offline else replace(session, kind=kind, asked=True)
        with suppress(RunStateError):  # which is said of the run
            session = await with_replaced(session) if is_whole else session
        _places(steps, session, is_whole)
    return steps


def _job(steps: Steps, path: Path, flags: Mapping[str, object]) -> tuple[Job | None, bool]:
    """The job, and whether its templates could be read: all but them can be looked at without."""
    job, is_whole = None, False
    with steps.trying("job"):
        spec, origins = read_job(path, flags)
        prompt = PromptSection.model_validate({"template": "-"})
        bare = spec.model_copy(update={"prompt": prompt, "chunk": None, "reduce": None, "refine": None})
        job = compiled(path, bare, origins)
        steps.passes("job", str(path))
    if job:
        with steps.trying("template"):
            job, is_whole = compiled(path, spec, origins), True
            steps.passes("template", spec.prompt.template_file or "in the job file")
    return job, is_whole


# --- the table --------------------------------------------------------------------------------------------------------


def _table(steps: Steps, job: Job, options: Options, is_whole: bool) -> Session | None:
    """The table, and whether the templates and the output go with it."""
    source = session = None
    with steps.trying("input"):
        source = open_input(job.spec)
    if source is None:
        steps.skips("columns")
        return None
    fits = False
    if is_whole:
        with steps.trying("columns"):
            check_columns(job, source)
            fits = True
    else:
        steps.skips("columns")
    with steps.trying("input"):
        session = prepared(job, options, source)
        session.check_input(looked_into=True)
        numbers, told = {"rows": session.rows}, job.spec.input.path
        warnings: tuple[str, ...] = ()
        if held := session.source.table.documents:
            for _ in source.batches(columns=[UNFIT]):  # reads them
                pass
            kinds, warnings = described(held, session.source.sends_scans)
            told, numbers["unread"] = f"{told}: {kinds}", len(held.unread)
        steps.passes("input", _counted(session.rows), told, numbers, warnings)
    if session is None or not fits:
        if fits:
            steps.skips("columns")
        return session
    with steps.trying("columns"):
        check_cells(session)
        steps.passes("columns", ", ".join(job.columns) or "none", "the templates fit them")
    return session


def _input_alone(steps: Steps, path: Path) -> None:
    """The table of a job of which another part is wrong: a person mends both at once."""
    if (spec := with_input_alone(path)) is None:
        steps.skips("input")
        return
    with steps.trying("input"):
        source = open_input(spec)
        source.check()
        steps.passes("input", _counted(source.count()), spec.input.path, {"rows": source.count()})


def _counted(rows: int) -> str:
    return f"{rows:,} row{'s' * (rows != 1)}"


def _places(steps: Steps, session: Session, is_whole: bool) -> None:
    """Where the run and its results would be, and what holds it to a budget and a cache."""
    with steps.trying("output"):
        check_output(session)
        output_conflict(session.source, str(session.output_file))
        try:
            with output_place(session):
                steps.passes("output", str(session.output), "can be written")
        except RunStateError:  # what is locked can be looked at all the same
            steps.passes("output", str(session.output), "a run writes it now")
    if not is_whole:  # what it would be asked is not known
        steps.skips("run")
        return
    with steps.trying("run"):
        steps.passes("run", str(session.directory), _start(session))


def _start(session: Session) -> str:
    """How the run starts. Raises what it would before its first call, beside what the steps before this one do."""
    change = changed(session)
    if not session.options.offline:
        shelf_of(session.job)
        hook_of(session.job)
    if not session.rehearsal:
        refuse_unpriced(session.job, session.options)
    check_room(session.directory)
    if change:
        return f"generation {change.generation} begins: {change.lines[0]}"
    return "goes on" if session.directory.exists() else "begins"


def _limits(steps: Steps, job: Job) -> None:
    limits = job.limits
    each = {name: getattr(limits, name) for name in METERS}
    told = [f"{name} {number:,}" if number else f"no {name}" for name, number in each.items() if number is not None]
    unset = [name for name, number in each.items() if number is None]
    remark = f"{', '.join(unset)} not set: learned from refusals" if unset else ""
    numbers = {name: number for name, number in each.items() if number}
    steps.passes("limits", ", ".join(told) or "none set", remark, numbers=numbers)


# --- the service ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Met:
    """What came of a connection, and of two requests that are free of charge: the models, and who answers."""

    target: Target
    models: list[str] | Failure
    connect_ms: float  # name, connection, the proxy's part and TLS
    latency_ms: float
    kind: Kind
    proxy: str = ""
    unsigned: PipelineError | None = None  # why there is no access token, where it takes one
    is_way: bool = True  # a connection was made
    batches: Step | None = None  # of a job that uses them

    @property
    def failure(self) -> Failure | None:
        """Why there is no listing."""
        return self.models if isinstance(self.models, Failure) else None

    @property
    def is_reached(self) -> bool:
        """Whether anything came back."""
        came = self.failure is None or self.failure.http_status is not None
        return came or (self.is_way and self.unsigned is not None)

    @property
    def is_refused(self) -> bool:
        """Whether it is the key, its project or the country that is refused."""
        return self.failure is not None and self.failure.kind == "auth"


async def _service(steps: Steps, job: Job, offline: bool) -> Kind | None:
    """Whether the key is good and the model offered, and who answers; None: nobody does."""
    key: Key | None = Key("", "Google's credentials" if job.bears_tokens else "")
    wrong: PipelineError | None = None
    if not offline and not job.bears_tokens:
        try:
            key = await anyio.to_thread.run_sync(key_of, job)
        except PipelineError as error:
            key, wrong = None, error
    try:
        met = await _meet(job, key or Key("", ""), offline)  # without a key any answer says that the way is open
    except PipelineError as error:
        steps += [] if offline else [_key_step(job, key, wrong, None)]
        steps.fails("network", error)
        steps.skips("country", "model")
        return None
    if met.unsigned:
        key, wrong = None, met.unsigned
    steps += [] if offline else [_key_step(job, key, wrong, met)]
    steps.append(_network_step(met, offline))
    steps += [] if offline else [_country_step(met, key)]
    steps.append(_model_step(met, key, job, offline))
    steps += [met.batches] if met.batches else []
    return met.kind if met.is_reached else None


async def _meet(job: Job, key: Key, offline: bool) -> _Met:
    """Raises `PipelineError` for an address, a proxy or certificates that cannot be used."""
    if not offline:
        check_certificates()
    endpoint = job.spec.endpoint
    network = Network() if offline else network_of(job)
    async with wire_over(network, offline) as wire:
        account = Account(wire, "offline" if offline else key.value, endpoint.api_version, endpoint.timeout_s)
        project, unsigned = "", None
        if job.bears_tokens and not offline:
            try:
                project = project_at(job)
                account = replace(account, tokens=await google_tokens(wire))
            except PipelineError as error:
                unsigned = error
        target = asked_at(job, offline, project)
        url = checked_url(target.base_url, job.spec.endpoint.provider)
        speaker = SPEAKERS[target.provider]({target.access: account})
        speaker.open(target)
        proxy = None if offline else network.proxy_to(url)
        begun = time.perf_counter()
        lost = None if offline else await wire.reach(url)
        connected = time.perf_counter()
        models: list[str] | Failure
        if lost:
            models = unanswered(lost)
        elif unsigned:
            models = Failure("auth", "auth", unsigned.message, sent=False)
        else:
            models = await speaker.list_models(target)
        batches = None
        if job.batches and not offline and not isinstance(models, Failure):
            batches = await batches_step(speaker, target)
        kind: Kind = "real"
        listed = time.perf_counter()
        if not isinstance(models, Failure) or models.http_status is not None:
            kind = "rehearsal" if await speaker.is_emulator(target) else "real"
        asked = time.perf_counter()
    return _Met(
        target,
        models,
        (connected - begun) * 1e3,
        (asked - listed) * 1e3,
        kind,
        str(proxy or ""),
        unsigned,
        not lost,
        batches,
    )


def _key_step(job: Job, key: Key | None, wrong: PipelineError | None, met: _Met | None) -> Step:
    if key is None:
        return Step("key", "failed", wrong.message if wrong else "", hint=wrong.hint if wrong else "")
    warnings = tuple(key.warnings)
    if met is None or not met.is_reached or (met.failure and not met.is_refused) or _is_abroad(met):
        return Step("key", "skipped", key.where, "found, and could not be tried", warnings=warnings)
    if met.failure:
        refused = key.where if job.bears_tokens else f"the key in {key.where}"
        what = f"{met.target.endpoint} refuses {refused}: {met.failure.message}"
        return Step(
            "key", "failed", what, hint=cure_of(what) or "look at the key; nothing was spent", warnings=warnings
        )
    warnings += tuple(f"{other} holds another key, which other programs may take" for other in key.passed_over)
    if old := remark(key.value, job.base_url):
        warnings = (*warnings, old)
    return Step("key", "passed", key.where, "accepted", warnings=warnings)


def _network_step(met: _Met, offline: bool) -> Step:
    if offline:
        return Step("network", "passed", "emulator", "built in")
    failure = met.failure
    if failure and not met.is_reached:
        if failure.kind == "proxy":
            known = refused_by_proxy(failure)
            return Step("network", "failed", known.message, hint=known.hint)
        hint = failure.advice or "look at the network and at [endpoint] base_url; nothing was spent"
        return Step("network", "failed", f"{met.target.endpoint} does not answer: {failure.message}", hint=hint)
    numbers, remark = {"connect_ms": round(met.connect_ms, 1)}, f"connected in {met.connect_ms:.0f} ms"
    if met.target.base_url.strip().lower().startswith("https:"):
        remark = f"connected with TLS in {met.connect_ms:.0f} ms"
    if met.proxy:
        remark = f"{remark} through the proxy {met.proxy}"
    if not met.unsigned:
        numbers["latency_ms"] = round(met.latency_ms, 1)
        remark = f"{remark}; answers in {met.latency_ms:.0f} ms"
    if met.kind == "rehearsal":
        remark = f"{remark}; it is an emulator: a run is a rehearsal"
    return Step("network", "passed", met.target.endpoint, remark, numbers=numbers)


def _country_step(met: _Met, key: Key | None) -> Step:
    if met.failure and _is_abroad(met):
        return Step("country", "failed", met.failure.message, hint=cure_of(met.failure.message))
    return Step("country", "skipped") if met.failure or key is None else Step("country", "passed", "served from here")


def _model_step(met: _Met, key: Key | None, job: Job, offline: bool) -> Step:
    target, failure = met.target, met.failure
    try:
        check_model(job, offline)
    except PipelineError as error:
        return Step("model", "failed", error.message, hint=error.hint)
    if failure:
        if key is None or met.is_refused or not met.is_reached:
            close = difflib.get_close_matches(target.model, [model.name for model in MODELS], n=1)
            meant = f"; did you mean {close[0]}?" if close and close[0] != target.model else ""
            return Step("model", "skipped", target.model, f"not tried{meant}")
        what = f"{target.endpoint} does not answer as it should: {failure.message}"
        hint = "check the key and [endpoint] base_url; nothing was spent"
        if target.provider == "openai" and failure.http_status == 404:
            hint = (
                "is the path of [endpoint] base_url right? Most end in /v1. One that lists no models is no mistake:"
                " `pipeline run JOB --limit 1` tells"
            )
        return Step("model", "failed", what, hint=hint)
    assert isinstance(met.models, list)
    numbers, models = {"models_offered": len(met.models)}, tuple(met.models)
    project, location = job.place
    whom = f"{project} at {location}" if job.bears_tokens and not offline else "this key"
    if target.model in met.models:
        told = f"one of {len(models):,} offered to {whom}" if len(models) > 1 else f"offered to {whom}"
        day = datetime.now(UTC).date()
        known = f"{target.model}: {about}" if (about := life(job, day)) else ""
        warnings = tuple(sentence for sentence in (known, *ignored(job, day)) if sentence)
        return Step("model", "passed", target.model, told, numbers=numbers, models=models, warnings=warnings)
    what = f"{target.endpoint} does not offer {target.model} to {whom}"
    elsewhere = '; or try [endpoint] location = "global", which has most' if location != GLOBAL else ""
    hint = _offered(target.model, met.models) + elsewhere
    return Step("model", "failed", what, hint=hint, numbers=numbers, models=models)


def _is_abroad(met: _Met) -> bool:
    return met.failure is not None and is_of_country(met.failure.message)


def _offered(model: str, names: list[str]) -> str:
    """What is closest to the model that was asked for, or some of what there is."""
    if close := difflib.get_close_matches(model, names, n=3):
        return f"did you mean {' or '.join(close)}?"
    return f"it offers {', '.join(names[:12])}" if names else "it offers no model at all"


def _quota(session: Session, named: str, forget: bool) -> Iterator[Step]:
    """What earlier runs left in the quota book that holds up the next, or would have."""
    try:
        target = next(target for target, _ in targets_of(session) if target.name == named)
    except PipelineError:  # another target has no key, which its own step says
        return
    path, name = quota_file(session.kind), target.quota
    now, days_of = time.time(), session.days_of(name)
    known = read_known(path, name, day_of(now, target.limits.reset_zone), now, days_of)
    rpm, tpm = known.limit("requests", target.limits.rpm), known.limit("tokens", target.limits.tpm)
    limits = {meter: limit for meter, limit in (("rpm", rpm), ("tpm", tpm)) if limit}
    told = [f"{meter} {limit:,.0f}" for meter, limit in limits.items()]
    numbers = {f"learned_{meter}": limit for meter, limit in limits.items()}
    with QuotaBook(path, name, days_of=days_of) as book:  # a run refuses one that cannot be used, and so does this
        if forget:
            book.forget()
    if not session.rehearsal:
        SpendBook(spend_file(), target.account, "").close()
    if forget:
        forgotten = ", ".join([*told, *["day used up"] * bool(known.day_opens_at)])
        yield Step("quota", "passed", f"forgotten: {forgotten or 'nothing'}", "of what earlier runs learned")
        return
    remark = "learned; `--forget` forgets it" if told else ""
    if known.day_opens_at is not None:
        told.append("day used up")
        remark = f"the day returns {until_text(now, known.day_opens_at)}; `--forget` forgets it"
    yield Step("quota", "passed", ", ".join(told) or "nothing learned", remark, numbers=numbers)
