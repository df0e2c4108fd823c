"""What a service can say that ends a run: the errors, as the person who started it reads them."""

from pipeline.errors import AuthError, JobError, PipelineError, QuotaExhausted, ServiceError
from pipeline.keys.diagnosis import cure_of
from pipeline.quota.daily import until_text
from pipeline.records import Failure


def day_used_up(now: float, opens_at: float) -> QuotaExhausted:
    """No request left today; both times in epoch seconds."""
    return QuotaExhausted(
        f"the day's quota of this project and model is used up; it returns {until_text(now, opens_at)}",
        "run the same command again then, or add --wait to sleep until then; if the quota was raised since:"
        " `pipeline check JOB --forget`, and [limits] rpd where it is set",
    )


def down(seconds: float) -> ServiceError:
    """Nothing but failures and refusals for so long."""
    return ServiceError(
        f"the service has failed or refused every request for {seconds / 60:.0f} minutes",
        "run the same command again when the service is back",
    )


def refused_by_proxy(failure: Failure) -> AuthError:
    """A proxy refuses to pass anything on."""
    return AuthError(f"no request reaches the service: {failure.message}", failure.advice)


def stopped_by(failure: Failure) -> PipelineError:
    """The end of a run in which no other prompt would fare better."""
    if failure.kind == "proxy":
        return refused_by_proxy(failure)
    if failure.kind == "auth":
        return AuthError(
            f"the service refuses the key, its project or the region: {failure.message}",
            f"{cure_of(failure.message) or 'look at the key and at what its project may use'};"
            " `pipeline check JOB` tries it, and the same command then goes on",
        )
    if any(hit.limit == 0 for hit in failure.quota):
        return QuotaExhausted(
            failure.message, "choose another model with `--model NAME`, or enable billing for the project"
        )
    if failure.kind == "spend_limit":
        return QuotaExhausted(
            failure.message,
            "raise the limit or add credit, then run the same command again; what a tier may spend in ten"
            " minutes comes back by itself",
        )
    if failure.http_status is not None and 300 <= failure.http_status < 500:
        return JobError(failure.message, "mend the job, then check it before anything is spent: `pipeline check JOB`")
    return ServiceError(failure.message, "run the same command again later")
