"""What a model refuses of a job's settings, what it ignores, and what becomes of it: said before anything is spent."""

import difflib
import re
from collections.abc import Iterator
from datetime import date

from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.models import MODELS, Model, answering, model_info, plain_name
from pipeline.prices import note

_IGNORED = ("temperature", "top_p", "top_k")


def check_fits(job: Job, day: date) -> None:
    """Raise `JobError` for a setting that would be a 400 for every row, by what is known of the model on `day`."""
    thinking, models = job.spec.model.thinking, _models(job, day)
    if job.spec.endpoint.provider == "openai" or not models:
        return
    if isinstance(thinking, int) and not any(model.budgets for model in models):
        level = "low" if not any(model.minimal_thinking for model in models) else "minimal"
        raise _refused(job, "thinking", thinking, f'a budget is for Gemini 2.5; name a level, as thinking = "{level}"')
    if isinstance(thinking, str) and all(model.budgets for model in models):
        raise _refused(
            job, "thinking", thinking, "Gemini 2.5 takes a budget in tokens, as thinking = 0 or thinking = -1"
        )
    if thinking == "minimal" and not any(model.minimal_thinking for model in models):
        raise _refused(job, "thinking", thinking, 'its least level is "low"')
    for params, where in ((job.params, "model"), (job.reduce_params, "reduce")):
        longest = params.max_output_tokens if params else None
        short = [model for model in models if model.max_output_tokens < model.listed_output_tokens]
        streamed = job.spec.model.stream and job.choice not in ("batch", "auto")  # the lines of a batch are not
        if longest and short and longest > short[0].max_output_tokens and not streamed:
            raise JobError(
                f"[{where}] max_output_tokens = {longest}: {short[0].name} answers at most"
                f" {short[0].max_output_tokens:,} tokens a request that is not streamed\n{job.path}",
                "set a smaller one: a line of a batch is not streamed" if job.batches else "set [model] stream = true",
            )


def ignored(job: Job, day: date) -> Iterator[str]:
    """What the model accepts and does not heed, one sentence."""
    models, asked = _models(job, day), job.spec.model
    named = [name for name in _IGNORED if getattr(asked, name) is not None]
    if named and models and not any(model.sampled for model in models):
        yield f"{job.model} ignores [model] {', '.join(named)}: Gemini 3.6 and later do"


def misspelt(job: Job) -> Iterator[str]:
    """That a name is almost one of Gemini's, one sentence: a relay may know others, so it is refused nowhere."""
    name = plain_name(job.model)
    close = difflib.get_close_matches(name, [model.name for model in MODELS], n=1, cutoff=0.9)
    if close and model_info(name) is None and re.findall(r"\d", name) == re.findall(r"\d", close[0]):
        yield f"no model {job.model} is known here: did you mean {close[0]}?"


def life(job: Job, day: date) -> str:
    """What a user should know of the model on `day`: who answers, when it ends, how its price changes; or nothing."""
    model = model_info(job.model)
    return "" if model is None else note(model, day)


def _models(job: Job, day: date) -> list[Model]:
    """The model asked and the one that answers: where another answers for it, nobody knows whose rules hold."""
    own, served = model_info(job.model), model_info(answering(job.model, day))
    return [model for model in (None if own and own.alias_of else own, served) if model]


def _refused(job: Job, key: str, value: object, instead: str) -> JobError:
    return JobError(f"[model] {key} = {value!r}: {job.model} refuses it\n{job.path}", instead)
