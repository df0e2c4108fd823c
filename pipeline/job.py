"""The job file: loaded, checked, resolved with the flags, and frozen."""

import difflib
import hashlib
import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from pipeline.errors import AuthError, JobError
from pipeline.keys import Key, origin_of, read
from pipeline.keys.diagnosis import diagnose
from pipeline.mistakes import as_job_error
from pipeline.prices import Rates, fixed_rates
from pipeline.prompts import Params
from pipeline.protocols import GLOBAL, PROTOCOLS, Protocol, usual_variables, vertex_url
from pipeline.records import Limits
from pipeline.sections import Endpoint, JobFile, TargetSection
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES, Template, read_template, read_text

_OF_ONE_PROTOCOL = {"base_url", "key_env", "key", "api_version", "project", "location"}
_OF_ONE_PROXY = {"proxy", "proxy_env"}
_ANSWER_SECTIONS = ("input", "prompt", "chunk", "reduce", "model")


@dataclass(frozen=True)
class Job:
    """A loaded job: `spec` as resolved, the compiled templates and the parameters of each step."""

    name: str
    path: Path
    spec: JobFile
    template: Template
    reduce_template: Template | None
    params: Params
    reduce_params: Params | None
    origins: Mapping[str, str]  # "model.name" → "flag", the variable's name or the job file's path; no entry: a default

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that can change an answer: not limits, budget, cache, output, endpoint."""
        return hashlib.blake2b(orjson.dumps(self.identity, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint hashes, section by section, files read in and unset keys left out."""
        sections = {
            name: getattr(self.spec, name).model_dump(exclude_none=True, exclude={"prices"})
            for name in _ANSWER_SECTIONS
            if getattr(self.spec, name) is not None
        }
        sections["prompt"] = {"template": self.template.source, "system": self.params.system}
        if self.reduce_template:
            sections["reduce"].pop("template_file", None)
            sections["reduce"]["template"] = self.reduce_template.source
        return sections

    @property
    def model(self) -> str:
        """The model that is asked."""
        return self.spec.model.name.removeprefix("publishers/google/").removeprefix("models/")

    @property
    def protocol(self) -> Protocol:
        """What is spoken to the service."""
        return PROTOCOLS[self.spec.endpoint.provider]

    @property
    def base_url(self) -> str:
        """Where the calls go; a target of another protocol than [endpoint] heeds the variable of its own."""
        endpoint = self.spec.endpoint
        own = vertex_url(self.place[1]) if endpoint.provider == "vertex" else self.protocol.base_url
        return endpoint.base_url or os.environ.get(self.protocol.base_url_variable) or own

    @property
    def place(self) -> tuple[str, str]:
        """Project and location on Vertex AI, by the job or else the environment; in express mode there is no project.

        An empty project is one that nobody names.
        """
        endpoint, named = self.spec.endpoint, os.environ.get
        if endpoint.key or endpoint.key_env:
            return "", GLOBAL
        project = endpoint.project or named("GOOGLE_CLOUD_PROJECT", "").strip()
        return project, endpoint.location or named("GOOGLE_CLOUD_LOCATION", "").strip() or GLOBAL

    @property
    def bears_tokens(self) -> bool:
        """Whether its requests bear access tokens, not a key."""
        endpoint = self.spec.endpoint
        return endpoint.provider == "vertex" and not (endpoint.key or endpoint.key_env)

    @cached_property
    def targets(self) -> tuple[tuple[TargetSection, "Job"], ...]:
        """Each `[[target]]`, and this job as it is asked there: its endpoint, model, limits and prices. Or none."""
        return tuple((target, replace(self, spec=_asked_at(self.spec, target))) for target in self.spec.target)

    @property
    def rules(self) -> tuple[frozenset[str], ...]:
        """The names of the targets that each rule leads to; of all, where there are no rules."""
        named = tuple(frozenset(route.targets) for route in self.spec.route)
        return named or (frozenset(target.name for target in self.spec.target),)

    @property
    def asked(self) -> tuple["Job", ...]:
        """This job as each of its targets is asked; itself where it names none."""
        return tuple(job for _, job in self.targets) or (self,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Input columns that the templates need, sorted; the chunked text and the parts are not columns."""
        names = {
            name
            for template, own in self.templates
            for name in (template.variables - own) | template.uses.of_row.keys()
        }
        return tuple(sorted(names))

    @property
    def templates(self) -> tuple[tuple[Template, frozenset[str]], ...]:
        """Each template with the variables that the job itself gives it."""
        own = CHUNK_VARIABLES if self.spec.chunk else frozenset({"text"}) if self.spec.input.text else frozenset()
        merging = ((self.reduce_template, REDUCE_VARIABLES),) if self.reduce_template else ()
        return ((self.template, own), *merging)

    def reads(self, table: Collection[str]) -> tuple[str, ...]:
        """Those of a table's columns that the templates look at, in its order."""
        found = frozenset[str]().union(*(template.reads(table, own) for template, own in self.templates))
        return tuple(name for name in table if name in found)

    @property
    def limits(self) -> Limits:
        """The limits as configured; None: unknown, 0: there is none."""
        return Limits(**self.spec.limits.model_dump())

    @property
    def own_rates(self) -> Rates | None:
        """Prices that the job names itself."""
        prices = self.spec.model.prices
        return fixed_rates(prices.input, prices.output, prices.cached) if prices else None


def load(path: Path, flags: Mapping[str, object] | None = None) -> Job:
    """Read a job file; `flags` ("model.name" → value, None: not given) win over it. Raises `JobError`."""
    return compiled(path, *read_job(path, flags))


def read_job(path: Path, flags: Mapping[str, object] | None = None) -> tuple[JobFile, Mapping[str, str]]:
    """A job file's settings, and where each comes from; no other file is read. Raises `JobError`."""
    try:
        text = path.read_text("utf-8-sig")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise JobError(f"no job file at {path}", _other_jobs(path)) from None
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not valid TOML: {error}") from None
    if path.stem.startswith(".") or not path.stem.isprintable():
        raise JobError(
            f"the job file is called {path.name!r}, and its run directory would be called {path.stem!r}",
            "give it a plain name such as summarize.toml",
        )
    origins = {
        f"{section}.{key}": str(path) for section, values in data.items() if isinstance(values, dict) for key in values
    }
    variable = _named_protocol(data, flags or {}).base_url_variable
    if (base_url := os.environ.get(variable)) and isinstance(data.setdefault("endpoint", {}), dict):
        data["endpoint"]["base_url"] = base_url
        origins["endpoint.base_url"] = variable
    for name, value in (flags or {}).items():
        if value is not None:
            section, key = name.split(".")
            if isinstance(data.setdefault(section, {}), dict):
                data[section][key] = value
                origins[name] = "flag"
    _refuse_huge(data, path)
    try:
        spec = JobFile.model_validate(data)
    except ValidationError as error:
        raise as_job_error(error, path, text, JobFile) from None
    return spec, origins


def compiled(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Job:
    """The job of what `read_job` gives, with its templates. Raises `JobError`."""
    job = _compile(path, spec, origins)
    for each in job.asked:
        _check_spoken(each.spec, path)
    _check_targets(job)
    return job


_PLACES_OF_KEY = frozenset({"key", "key_env"})


def _asked_at(spec: JobFile, target: TargetSection) -> JobFile:
    """The job file with what the target says in the place of what all say."""
    said = target.model_fields_set
    endpoint = {name: getattr(spec.endpoint, name) for name in spec.endpoint.model_fields_set}
    if "provider" in said and target.provider != spec.endpoint.provider:  # address and key are another protocol's
        endpoint = {name: value for name, value in endpoint.items() if name not in _OF_ONE_PROTOCOL}
    if said & _OF_ONE_PROXY:
        endpoint = {name: value for name, value in endpoint.items() if name not in _OF_ONE_PROXY}
    if said & _PLACES_OF_KEY:  # its own place, and not the other's as well
        endpoint = {name: value for name, value in endpoint.items() if name not in _PLACES_OF_KEY}
    endpoint |= {name: getattr(target, name) for name in said & Endpoint.model_fields.keys()}
    limits = {name: getattr(target.limits, name) for name in target.limits.model_fields_set}
    model = {"name": target.model, "prices": target.prices if "prices" in said else None} if target.model else {}
    if "prices" in said:
        model["prices"] = target.prices
    return spec.model_copy(
        update={
            "endpoint": Endpoint.model_validate(endpoint),
            "limits": spec.limits.model_copy(update=limits),
            "model": spec.model.model_copy(update=model),
            "target": [],
        }
    )


def _check_targets(job: Job) -> None:
    """Raise for targets of which some would never be asked, or to which a flag would say nothing."""
    if not job.targets:
        return
    for names in job.rules:
        ruled = [(target, each) for target, each in job.targets if target.name in names]
        asked_first = [(target, each) for target, each in ruled if target.takes]
        if not asked_first:
            raise JobError(
                f"no target is asked at first: each waits for an answer of another\n{job.path}, [[target]] fallback",
                "one target must have no `fallback`",
            )
        for target, each in ruled:
            models = {other.model for section, other in asked_first if section is not target}
            if target.takes_over and each.model in models:
                raise JobError(
                    f"target {target.name} takes over answers of the model that it asks itself, {each.model}\n"
                    f"{job.path}, [[target]] fallback",
                    "name another `model` there: the same one answers the same",
                )
    for target, _ in job.targets:
        for key, said in (
            ("model.name", target.model),
            *((f"limits.{key}", key) for key in target.limits.model_fields_set),
        ):
            if said and job.origins.get(key) == "flag":
                raise JobError(
                    f"a flag sets {key}, and target {target.name} has its own\n{job.path}",
                    "change it in the job file, or leave the flag out",
                )


def _named_protocol(data: Mapping[str, Any], flags: Mapping[str, object]) -> Protocol:
    """The protocol that is named, before anything is checked."""
    section = data.get("endpoint")
    named = flags.get("endpoint.provider") or (section.get("provider") if isinstance(section, dict) else None)
    return next((each for name, each in PROTOCOLS.items() if name == named), PROTOCOLS["gemini"])


def _check_spoken(spec: JobFile, path: Path) -> None:
    """Raise for a setting that the protocol has no word for: it would be left out in silence."""
    protocol = PROTOCOLS[spec.endpoint.provider]
    for name, lack in protocol.lacks.items():
        section, key = name.split(".")
        values = getattr(spec, section)
        if key in values.model_fields_set and lack.only(getattr(values, key)):
            value = getattr(values, key)
            raise JobError(
                f"[{section}] {key} = {value!r}: {protocol.owner}'s protocol has no word for it\n{path}", lack.instead
            )


def key_of(job: Job, *, again: bool = False) -> Key:
    """The key from where the job says that it is; `again`: also where that was asked before.

    Raises `JobError` where there is none, `AuthError` for what cannot be a key of this service.
    """
    endpoint = job.spec.endpoint
    variables = (endpoint.key_env,) if endpoint.key_env else job.protocol.key_variables
    key = read(origin_of(endpoint.key, variables, job.path.parent, usual_variables(job.base_url)), again=again)
    if trouble := diagnose(key.value, key.where, job.base_url, variables):
        raise AuthError(f"the API key cannot be used: {trouble.what}", trouble.cure)
    return key


def _compile(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Job:
    beside, prompt = path.parent, spec.prompt
    template = read_template(prompt.template, prompt.template_file, beside, f"{path}, [prompt] template")
    system = prompt.system
    if prompt.system_file is not None:
        system = read_text(prompt.system, prompt.system_file, beside, f"{path}, [prompt] system")
    model = spec.model
    safety = sorted(_safety(name, value) for name, value in model.safety.items())
    for (name, _), (following, _) in pairwise(safety):
        if name == following:
            raise JobError(f"[model] safety names {name} twice\n{path}")
    params = Params(
        system=system,
        max_output_tokens=model.max_output_tokens,
        temperature=model.temperature,
        top_p=model.top_p,
        top_k=model.top_k,
        seed=model.seed,
        stop=tuple(model.stop),
        thinking=model.thinking,
        response_mime_type=model.response_mime_type,
        safety=tuple(safety),
    )
    reduce_template = reduce_params = None
    if spec.chunk and spec.reduce:
        if not template.mentions("text"):
            raise JobError(
                f"the template does not use {{{{ text }}}}, so the pieces would never be sent\n{template.where}",
                "with [chunk], `{{ text }}` is the piece of the text column",
            )
        reduce = spec.reduce
        reduce_template = read_template(reduce.template, reduce.template_file, beside, f"{path}, [reduce] template")
        if not reduce_template.mentions("parts"):
            raise JobError(
                f"the template does not use {{{{ parts }}}}, so nothing would be merged\n{reduce_template.where}",
                "`{{ parts }}` inserts the answers to the pieces",
            )
        reduce_params = replace(
            params,
            system=reduce.system if reduce.system is not None else system,
            max_output_tokens=reduce.max_output_tokens or params.max_output_tokens,
        )
    return Job(path.stem, path, spec, template, reduce_template, params, reduce_params, origins)


def _refuse_huge(data: Mapping[str, Any], path: Path, place: tuple[str, ...] = ()) -> None:
    """Raise for a whole number that TOML lacks, at any depth: nothing that it is written to or sent in has it."""
    for key, value in data.items():
        if isinstance(value, dict):
            _refuse_huge(value, path, (*place, key))
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            section, *rest = (*place, key)
            raise JobError(f"[{section}] {'.'.join(rest)}: the number has more than 64 bits\n{path}")


def _safety(name: str, value: str) -> tuple[str, str]:
    category = name.upper()
    return (category if category.startswith("HARM_CATEGORY_") else f"HARM_CATEGORY_{category}", value.upper())


def _other_jobs(path: Path) -> str:
    jobs = sorted(str(found) for found in Path("jobs").glob("*.toml"))
    close = difflib.get_close_matches(str(path), jobs, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(jobs)}" if jobs else "paths are relative to the directory you are in"
