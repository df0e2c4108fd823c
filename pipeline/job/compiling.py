"""From the settings of a job file to its templates and the parameters of each step."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from pipeline.errors import JobError
from pipeline.job.job import Job
from pipeline.prompts import Params
from pipeline.sections import JobFile
from pipeline.templates import Template, read_template, read_text


def compile_job(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Job:
    """The job, with its templates read. Raises `JobError` for one that cannot be asked."""
    beside, prompt = path.parent, spec.prompt
    where = f"{path}, [prompt] template"
    if spec.input.messages is not None and prompt.template is None and prompt.template_file is None:
        template = Template("", where)
    else:
        template = read_template(prompt.template, prompt.template_file, beside, where)
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
        presence_penalty=model.presence_penalty,
        frequency_penalty=model.frequency_penalty,
        media_resolution=model.media_resolution,
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


def _safety(name: str, value: str) -> tuple[str, str]:
    category = name.upper()
    return (category if category.startswith("HARM_CATEGORY_") else f"HARM_CATEGORY_{category}", value.upper())
