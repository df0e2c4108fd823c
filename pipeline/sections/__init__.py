"""The sections of a job file, each with its settings, what they mean and what is checked of each alone."""

from pydantic import Field, model_validator

from pipeline.sections.alerts import Alerts
from pipeline.sections.answering import Endpoint, LimitsSection, RouteSection, TargetSection
from pipeline.sections.asked import MOST_INLINE_MB, Chunk, Input, ModelSection, Prices, PromptSection, Reduce, Refine
from pipeline.sections.base import Section
from pipeline.sections.kept import OUTPUT_SUFFIXES, Budget, Cache, CheckSection, Output
from pipeline.sections.packing import Pack
from pipeline.sections.redacting import Redact
from pipeline.sections.running import RunSection
from pipeline.sections.tools import FunctionSection, Tools

__all__ = [
    "MOST_INLINE_MB",
    "OUTPUT_SUFFIXES",
    "Alerts",
    "Budget",
    "Cache",
    "CheckSection",
    "Chunk",
    "Endpoint",
    "FunctionSection",
    "Input",
    "JobFile",
    "LimitsSection",
    "ModelSection",
    "Output",
    "Pack",
    "Prices",
    "PromptSection",
    "Redact",
    "Reduce",
    "Refine",
    "RouteSection",
    "RunSection",
    "TargetSection",
    "Tools",
]


class JobFile(Section):
    """The sections of a job file."""

    input: Input
    prompt: PromptSection = PromptSection()  # type: ignore[call-arg]
    chunk: Chunk | None = None
    reduce: Reduce | None = None
    refine: Refine | None = None
    redact: Redact | None = None
    pack: Pack | None = None
    model: ModelSection
    tools: Tools | None = None
    endpoint: Endpoint = Endpoint()  # type: ignore[call-arg]  # every field has a default
    limits: LimitsSection = LimitsSection()  # type: ignore[call-arg]
    target: list[TargetSection] = Field(default_factory=list, max_length=64)
    route: list[RouteSection] = Field(default_factory=list, max_length=64)
    run: RunSection = RunSection()  # type: ignore[call-arg]
    budget: Budget = Budget()  # type: ignore[call-arg]
    alerts: Alerts = Alerts()  # type: ignore[call-arg]
    cache: Cache | None = None
    check: list[CheckSection] = Field(default_factory=list, max_length=64)
    output: Output

    @model_validator(mode="after")
    def _targets_are_told_apart(self) -> "JobFile":
        names = [target.name for target in self.target]
        for number, target in enumerate(self.target):
            if target.name in names[:number]:
                raise ValueError(f"two targets are called {target.name}")
            if target.same_project_as is not None and target.same_project_as not in names[:number]:
                raise ValueError(f"target {target.name}: same_project_as must name a target before it")
        return self

    @model_validator(mode="after")
    def _checks_escalate_to_one(self) -> "JobFile":
        named = {check.escalate for check in self.check} - {None}
        if len(named) > 1:
            raise ValueError("each [[check]] that escalates must name the same target")
        for name in named:
            target = next((each for each in self.target if each.name == name), None)
            if target is None:
                raise ValueError(f"[[check]] escalate names {name!r}, which is no [[target]]")
            if "check" not in target.takes_over:
                raise ValueError(f'[[check]] escalate names {name}: that target needs fallback = ["check"]')
        return self

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> "JobFile":
        if not self.route:
            return self
        names = {target.name for target in self.target}
        for number, route in enumerate(self.route, 1):
            if unknown := set(route.targets) - names:
                raise ValueError(f"[[route]] number {number} names {min(unknown)!r}, which is no [[target]]")
            if (route.where is None) != (number == len(self.route)):
                raise ValueError(
                    "the last [[route]] is for all rows that no other takes: it has no `where`; each before it has one"
                )
        if idle := names.difference(*(route.targets for route in self.route)):
            raise ValueError(f"no [[route]] leads to target {min(idle)}")
        return self

    @model_validator(mode="after")
    def _chunking_is_whole(self) -> "JobFile":
        if self.reduce and self.refine:
            raise ValueError("[reduce] merges the answers to all pieces, [refine] goes from piece to piece: choose one")
        if (self.chunk is None) != (self.reduce is None and self.refine is None):
            raise ValueError("[chunk] goes together with [reduce] or [refine]")
        if self.chunk and self.input.text is None:
            raise ValueError("[chunk] needs [input] text: the column that is cut")
        if self.redact and self.redact.restore and self.tools and self.tools.google_search is not False:
            raise ValueError("[redact] restore would move what the citations of [tools] google_search point to")
        if self.redact and self.input.media:
            raise ValueError(
                f"[redact] and [input] {self.input.media[0][0]}: what a file shows or says would be sent as it is"
            )
        if self.redact and self.input.scans:
            raise ValueError("[redact] and [input] scans: what a scanned page shows would be sent as it is")
        if self.chunk and self.prompt.flow:
            raise ValueError('[chunk] and [prompt] flow = "conversation" do not go together: ask about pieces, or talk')
        if self.chunk and self.input.messages:
            raise ValueError("[chunk] and [input] messages do not go together: a conversation is not cut")
        if self.chunk and self.input.media:
            raise ValueError(f"[chunk] and [input] {self.input.media[0][0]}: each piece would be sent with all files")
        if self.input.media and not (self.prompt.template or self.prompt.template_file or self.prompt.turns):
            raise ValueError(f"[input] {self.input.media[0][0]} needs a [prompt] template: files stand before its text")
        if self.chunk and self.tools:
            raise ValueError("[tools] are for rows that are asked whole: leave [chunk] out")
        if self.tools and self.tools.function and self.prompt.flow:
            raise ValueError(
                f'[prompt] flow = "{self.prompt.flow}" and [[tools.function]]: after a turn that is answered with a'
                " call there is nothing to go on from; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _packs_can_be_taken_apart(self) -> "JobFile":
        if self.pack is None:
            return self
        if self.chunk is not None:
            raise ValueError("[pack] is for short rows and [chunk] for long ones: leave one of them out")
        for name, is_set in (
            ("[[prompt.examples]]", self.prompt.examples),
            (f'[prompt] flow = "{self.prompt.flow}"', self.prompt.flow is not None),
            ("[input] messages", self.input.messages),
            ("[tools]", self.tools),
            *((f"[input] {kind}", True) for kind, _ in self.input.media),
            ("[input] scans", self.input.scans),
        ):
            if is_set:
                raise ValueError(f"[pack] is for rows that are one text, and not for {name}: leave one of them out")
        if self.model.stop:
            raise ValueError("[model] stop would cut a pack at its first answer: leave it out, or [pack]")
        if self.model.response_mime_type == "text/x.enum":
            raise ValueError('response_mime_type = "text/x.enum" allows one answer only: leave it out, or [pack]')
        return self
