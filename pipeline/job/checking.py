"""What is wrong with a job between its sections: targets that nobody would ask, settings that nobody would heed."""

from pathlib import Path

from pipeline.errors import JobError
from pipeline.job.job import Job
from pipeline.models import model_info
from pipeline.protocols import PROTOCOLS
from pipeline.schemas import SchemaError, openapi, requires_itself
from pipeline.sections import JobFile


def check_targets(job: Job) -> None:
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
        if job.escalates_to and job.escalates_to not in names:
            raise JobError(
                f"[[check]] escalates to {job.escalates_to}, and a [[route]] does not lead there\n{job.path}",
                f"name {job.escalates_to} in `targets` of each [[route]]",
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


def check_schema(job: Job) -> None:
    """Raise for a schema of answers that the protocol does not take."""
    if job.schema and not job.schema.is_of_object and job.spec.endpoint.provider == "openai":
        raise JobError(
            f"[output] schema is of no object, and OpenAI's protocol asks for nothing else\n{job.path}",
            "make it a property of one: `answer: [str]` for a list of texts",
        )
    if job.schema and job.spec.endpoint.provider != "openai" and (place := requires_itself(job.schema.value)):
        raise JobError(
            f"[output] schema: {place} requires itself, and Gemini has no form for that\n{job.path}",
            "leave the property that leads back out of `required`; that it may be null is not enough",
        )


def check_caching(job: Job) -> None:
    """Raise for an explicit cache that is asked for by all means, of a model that has none."""
    known = model_info(job.model)
    if job.spec.model.prefix_cache is True and known and not known.explicit_caches:
        raise JobError(
            f"[model] prefix_cache = true: {known.name} keeps no explicit caches\n{job.path}",
            'leave it out, or write "auto": what the model caches itself is cached, as it is billed',
        )


def check_lanes(job: Job) -> None:
    """Raise for what cannot be together with batches."""
    if not job.batches:
        return
    for given, name, why in (
        (
            job.spec.pack is not None,
            "[pack]",
            "a pack is made of prompts that meet, and here none do",
        ),
        (
            bool(job.spec.model.prefix_cache),
            "[model] prefix_cache",
            "a cache costs by the hour, and batches take many",
        ),
    ):
        if given:
            raise JobError(
                f'[model] lane = "{job.choice}" and {name}: {why}\n{job.path}',
                f'leave {name} out, or set lane = "flex"',
            )
    for each in job.asked:
        if job.schema and each.choice in ("batch", "auto") and each.spec.endpoint.provider == "gemini":
            try:
                openapi(job.schema.value)
            except SchemaError as error:
                raise JobError(
                    f'[output] schema and [model] lane = "{each.choice}": {error.message}\n{job.path}',
                    'a batch takes the older form of a schema, which cannot say that: change it, or set lane = "flex"',
                ) from None


def check_spoken(spec: JobFile, path: Path) -> None:
    """Raise for a setting that the protocol has no word for: it would be left out in silence."""
    protocol = PROTOCOLS[spec.endpoint.provider]
    for name, lack in protocol.lacks.items():
        section, key = name.split(".")
        values = getattr(spec, section)
        if values is None:
            continue
        if key in values.model_fields_set and lack.only(getattr(values, key)):
            value = getattr(values, key)
            raise JobError(
                f"[{section}] {key} = {value!r}: {protocol.owner}'s protocol has no word for it\n{path}", lack.instead
            )
