"""From the settings of a job file to its templates and the parameters of each step."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import orjson

from pipeline.errors import JobError
from pipeline.job.answers import read_checks, read_schema
from pipeline.job.job import Job
from pipeline.mistakes import stands_at
from pipeline.prompts import Function, Params
from pipeline.prompts import Tools as Asked
from pipeline.sections import JobFile, Reduce, Refine, Tools
from pipeline.templates import Template, read_template, read_text


def compile_job(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Job:
    """The job, with its templates read. Raises `JobError` for one that cannot be asked."""
    beside, prompt = path.parent, spec.prompt
    where = f"{_at(path, origins, 'prompt.template')}, [prompt] template"
    turns = tuple(
        Template(source, f"{_at(path, origins, 'prompt.turns')}, [prompt] turns, number {number}")
        for number, source in enumerate(prompt.turns, 1)
    )
    is_said = spec.input.messages is not None and prompt.template is None and prompt.template_file is None
    if prompt.flow or is_said:
        template = turns[0] if turns else Template("", where)
    else:
        template = read_template(prompt.template, prompt.template_file, beside, where)
    system = prompt.system
    if prompt.system_file is not None:
        system = read_text(
            prompt.system, prompt.system_file, beside, f"{_at(path, origins, 'prompt.system')}, [prompt] system"
        )
    model, schema = spec.model, read_schema(path, spec, origins)
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
        presence_penalty=model.presence_penalty,
        frequency_penalty=model.frequency_penalty,
        media_resolution=model.media_resolution,
        schema=schema.text if schema else None,
        tools=_tools(spec.tools),
        packed=spec.pack is not None,
    )
    if spec.chunk and not template.mentions("text"):
        raise JobError(
            f"the template does not use {{{{ text }}}}, so the pieces would never be sent\n{template.where}",
            "with [chunk], `{{ text }}` is the piece of the text column",
        )
    reduce_template, reduce_params = _later(path, origins, "reduce", spec.reduce, params)
    refine_template, refine_params = _later(path, origins, "refine", spec.refine, params)
    return Job(
        path.stem,
        path,
        spec,
        template,
        reduce_template,
        params,
        reduce_params,
        origins,
        refine_template,
        refine_params,
        schema,
        turns,
        read_checks(path, spec, schema),
    )


_MENTIONED = {
    "parts": ("nothing would be merged", "`{{ parts }}` inserts the answers to the pieces"),
    "summary": ("the answers before it would be lost", "`{{ summary }}` inserts the answer so far"),
    "text": ("the pieces would never be sent", "`{{ text }}` is the next piece of the text column"),
}
_NEEDED = {"reduce": ("parts",), "refine": ("summary", "text")}


def _at(path: Path, origins: Mapping[str, str], name: str) -> str:
    """File and line of a text, or of the name of its file."""
    return stands_at(path, origins, name if name in origins else f"{name}_file")


def _later(
    path: Path, origins: Mapping[str, str], name: str, section: Reduce | Refine | None, params: Params
) -> tuple[Template | None, Params | None]:
    """Template and parameters of calls that build on the answers to earlier ones. Raises `JobError`."""
    if section is None:
        return None, None
    where = f"{_at(path, origins, f'{name}.template')}, [{name}] template"
    template = read_template(section.template, section.template_file, path.parent, where)
    for variable in _NEEDED[name]:
        if not template.mentions(variable):
            so, hint = _MENTIONED[variable]
            raise JobError(f"the template does not use {{{{ {variable} }}}}, so {so}\n{template.where}", hint)
    system = params.system if section.system is None else section.system
    longest = section.max_output_tokens or params.max_output_tokens
    return template, replace(params, schema=None, system=system, max_output_tokens=longest)


def _tools(section: Tools | None) -> Asked | None:
    if section is None:
        return None
    search = section.google_search
    return Asked(
        google_search="" if search is False else _json({} if search is True else search),
        url_context=section.url_context,
        code_execution=section.code_execution,
        functions=tuple(
            Function(each.name, each.description, "" if each.parameters is None else _json(each.parameters))
            for each in section.function
        ),
        mode=section.mode,
        allowed=tuple(section.allowed),
    )


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _safety(name: str, value: str) -> tuple[str, str]:
    category = name.upper()
    return (category if category.startswith("HARM_CATEGORY_") else f"HARM_CATEGORY_{category}", value.upper())
