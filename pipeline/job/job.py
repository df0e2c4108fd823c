"""A job as it is asked: settings, compiled templates, and the parameters of each step."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from pipeline.answer_columns import ANSWERS, AnswerColumn, redacted_column
from pipeline.errors import AuthError
from pipeline.job.answers import read_checks
from pipeline.job.asked import asked_at
from pipeline.job.tool_columns import tool_columns
from pipeline.keys import Key, origin_of, read
from pipeline.keys.diagnosis import diagnose
from pipeline.prices import Rates, fixed_rates
from pipeline.prompts import Content, Params, Text, Turn
from pipeline.protocols import GLOBAL, PROTOCOLS, Protocol, usual_variables, vertex_url
from pipeline.records import LaneChoice, Limits, Step
from pipeline.redaction import Redactor
from pipeline.schemas import Schema
from pipeline.schemas.checks import Checks
from pipeline.sections import JobFile, TargetSection
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES, REFINE_VARIABLES, Template

GIVEN = "runs/.given/"
"""Where tables lie that a run was given in memory, each named by its content."""
_ANSWER_SECTIONS = ("input", "prompt", "chunk", "reduce", "refine", "redact", "model", "tools")
_NO_PART_OF_ANSWERS = {
    *("prices", "labels", "stream", "restore", "prefix_cache", "lane"),
    *("files_root", "inline_mb", "delete_files", "fetch_urls"),
}


@dataclass(frozen=True, repr=False)
class Job:
    """A loaded job: `spec` as resolved, the compiled templates and the parameters of each step."""

    name: str
    path: Path
    spec: JobFile
    template: Template  # of a conversation: that of its first turn
    reduce_template: Template | None
    params: Params
    reduce_params: Params | None
    origins: Mapping[str, str]  # "model.name" → "flag", the variable's name or file:line; no entry: a default
    refine_template: Template | None = None
    refine_params: Params | None = None
    schema: Schema | None = None  # what an answer is held to
    turns: tuple[Template, ...] = ()  # of a conversation
    checks: Checks | None = None  # what else an answer is held to

    def __repr__(self) -> str:
        return f"Job({self.name!r}, {self.model}, {self.spec.input.path} → {self.spec.output.path})"

    def __getstate__(self) -> dict[str, Any]:
        """All but the compiled checks, which are functions."""
        return {**self.__dict__, "checks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, checks=read_checks(state["path"], state["spec"], state["schema"]))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that can change an answer: not limits, budget, cache, output, endpoint."""
        return hashlib.blake2b(orjson.dumps(self.identity, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint hashes, section by section, files read in and unset keys left out."""
        sections = {
            name: getattr(self.spec, name).model_dump(exclude_none=True, exclude=_NO_PART_OF_ANSWERS)
            for name in _ANSWER_SECTIONS
            if getattr(self.spec, name) is not None
        }
        sections["prompt"] = {"template": self.template.source, "system": self.params.system}
        prompt = self.spec.prompt
        if prompt.examples:
            sections["prompt"]["examples"] = [example.model_dump() for example in prompt.examples]
        if prompt.flow:
            turns = [turn.source for turn in self.turns]
            sections["prompt"] |= {"flow": prompt.flow, "turns": turns, "turns_column": prompt.turns_column}
        for name, template in (("reduce", self.reduce_template), ("refine", self.refine_template)):
            if template:
                sections[name].pop("template_file", None)
                sections[name]["template"] = template.source
        if self.schema:
            sections["output"] = {"schema": self.schema.text, "repair": self.spec.output.repair}
        if self.spec.check:
            sections["check"] = {"checks": [check.model_dump(exclude_defaults=True) for check in self.spec.check]}
        if self.spec.input.path.startswith(GIVEN):  # the name says no more than the content does
            sections["input"]["path"] = GIVEN
        if self.spec.pack:
            sections["pack"] = {"packed": True}  # of how many rows is no part of an answer
        return sections

    @cached_property
    def examples(self) -> Content:
        """The turns of `[[prompt.examples]]`."""
        return tuple(
            turn
            for each in self.spec.prompt.examples
            for turn in (Turn("user", (Text(each.input),)), Turn("model", (Text(each.output),)))
        )

    @property
    def asks(self) -> bool:
        """Whether it asks something itself, after the conversation that a row may hold."""
        return self.spec.input.messages is None or bool(self.template.source or self.spec.prompt.flow)

    @property
    def talks(self) -> dict[str, str]:
        """Columns that hold conversations and turns, with the settings that name them."""
        named = {"[input] messages": self.spec.input.messages, "[prompt] turns_column": self.spec.prompt.turns_column}
        return {column: setting for setting, column in named.items() if column is not None}

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
        return tuple((target, replace(self, spec=asked_at(self.spec, target))) for target in self.spec.target)

    @property
    def choice(self) -> LaneChoice:
        """What it says of its lanes."""
        return self.spec.model.lane

    @property
    def batches(self) -> bool:
        """Whether some of its prompts may go to batches."""
        return any(each.choice in ("batch", "auto") for each in self.asked)

    @property
    def rules(self) -> tuple[frozenset[str], ...]:
        """The names of the targets that each rule leads to; of all, where there are no rules."""
        named = tuple(frozenset(route.targets) for route in self.spec.route)
        return named or (frozenset(target.name for target in self.spec.target),)

    @property
    def asked(self) -> tuple["Job", ...]:
        """This job as each of its targets is asked; itself where it names none."""
        return tuple(job for _, job in self.targets) or (self,)

    def models_of(self, step: Step) -> tuple[str, ...]:
        """The models that may have answered a step, each once."""
        escalates = step == "escalate"
        asked = [job.model for target, job in self.targets if (target.name == self.escalates_to) == escalates]
        return tuple(dict.fromkeys(asked)) or (self.model,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Input columns that the templates need, sorted; the chunked text and the parts are not columns."""
        names = {
            name
            for template, own in self.templates
            for name in (template.variables - own) | template.uses.of_row.keys()
        }
        return tuple(sorted(names))

    def params_of(self, step: Step) -> Params:
        """The parameters of a step's prompts; of a text that is cut, only what concludes it has a schema."""
        later = {"reduce": self.reduce_params, "refine": self.refine_params}
        return later.get(step) or (replace(self.params, schema=None) if step == "map" else self.params)

    def concluding(self, params: Params) -> Params:
        """The same for a prompt whose answer is to be its row's."""
        return replace(params, schema=self.params.schema)

    @property
    def asks_again(self) -> bool:
        """Whether an answer that is not as it should be is asked for once more."""
        return self.spec.output.repair or any(check.retry or check.escalate for check in self.spec.check)

    @property
    def escalates_to(self) -> str | None:
        """The target that is asked where a check does not hold for an answer."""
        return next((check.escalate for check in self.spec.check if check.escalate), None)

    @property
    def templates(self) -> tuple[tuple[Template, frozenset[str]], ...]:
        """Each template with the variables that the job itself gives it."""
        own = CHUNK_VARIABLES if self.spec.chunk else frozenset({"text"}) if self.spec.input.text else frozenset()
        later = ((self.reduce_template, REDUCE_VARIABLES), (self.refine_template, REFINE_VARIABLES))
        turns = ((template, own) for template in self.turns[1:])
        return ((self.template, own), *turns, *((template, given) for template, given in later if template))

    @cached_property
    def answer_columns(self) -> tuple[AnswerColumn, ...]:
        """Columns of the output that are read out of the answers."""
        made = self.schema.columns(self.spec.output.prefix) if self.schema else ()
        of_answer = tuple(
            AnswerColumn(each.name, each.dtype, each.means, "response", each.cell, each.is_json) for each in made
        )
        of_turns = (ANSWERS,) if self.spec.prompt.flow else ()
        counted = (redacted_column(self.redactor.names),) if self.redactor else ()
        return (*of_answer, *tool_columns(self.spec.tools), *of_turns, *counted)

    @cached_property
    def redactor(self) -> Redactor | None:
        """What finds in the rows what must not be sent."""
        if (section := self.spec.redact) is None:
            return None
        patterns = sorted((name, re.compile(pattern)) for name, pattern in section.patterns.items())
        return Redactor(tuple(dict.fromkeys(section.kinds)), tuple(patterns))

    def reads(self, table: Collection[str]) -> tuple[str, ...]:
        """Those of a table's columns that prompts are made of, in its order."""
        found = frozenset(self.talks).union(*(template.reads(table, own) for template, own in self.templates))
        return tuple(name for name in table if name in found)

    @property
    def limits(self) -> Limits:
        """The limits as configured; None: unknown, 0: there is none."""
        return Limits(**self.spec.limits.model_dump())

    @property
    def own_rates(self) -> Rates | None:
        """Prices that the job names itself."""
        prices = self.spec.model.prices
        if prices is None:
            return None
        usd = prices.input, prices.output, prices.cached, prices.search, prices.stored
        return fixed_rates(*usd, flex=prices.flex, batch=prices.batch)


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
