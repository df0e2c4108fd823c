"""What a session tells its run.log, but for what happens: what it expects, which limits it was told, how far it is."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from decimal import Decimal

from pipeline.events import LimitSet, Progressed, SessionEnded, SessionPlanned
from pipeline.plan import Plan
from pipeline.report.accuracy import Amounts, logged
from pipeline.run.engine import Monitor
from pipeline.run.prepare import Session
from pipeline.run.status import Status
from pipeline.targets import Target, by_quota


def expectation(session: Session, plan: Plan, is_redo: bool) -> SessionPlanned:
    """What the session is expected to take; of a rehearsal no cost."""
    steps: dict[str, Amounts] = {
        step: Amounts(
            round(each.prompts),
            round(each.input_tokens),
            round(each.answer_tokens),
            Decimal(0) if session.rehearsal else each.cost_usd,
        )
        for step, each in plan.steps.items()
    }
    pilot, usd = session.options.pilot is not None, plan.cost_usd
    return SessionPlanned(
        time.time(),
        session.rows,
        pilot,
        logged(steps),
        round(plan.timeline.seconds, 1),
        plan.based_on,
        plan.calls_by_lane,
        {
            "input_tokens": (float(plan.input_tokens.low), float(plan.input_tokens.high)),
            "output_tokens": (float(plan.output_tokens.low), float(plan.output_tokens.high)),
            **({"cost_usd": (float(usd.low), float(usd.high))} if usd and not session.rehearsal else {}),
        },
        is_redo,
    )


def told_limits(targets: Sequence[Target], monitor: Monitor) -> Iterator[LimitSet]:
    """The limits that the job or the service told; those that are only believed are told when they are set."""
    for sharing, quota in zip(by_quota(targets).values(), monitor.desk.standing if monitor.desk else (), strict=False):
        name = ", ".join(filter(None, (target.name for target in sharing)))
        if quota.rpm and quota.rpm.told:
            yield LimitSet("requests", quota.rpm.limit, "configured", target=name)
        if quota.tpm and quota.tpm.told:
            yield LimitSet("tokens", quota.tpm.limit, "configured", target=name)


def progress_of(monitor: Monitor, status: Status | None = None) -> Progressed:
    """How far the session is, and what it waits for by a `status` of now."""
    saved, desk = monitor.saved, monitor.desk
    return Progressed(
        seconds=round(monitor.seconds, 3),
        rows_done=monitor.done,
        calls=monitor.calls,
        cost_usd=monitor.cost_usd,
        identical=saved.identical,
        cached=saved.cached,
        saved_usd=saved.usd,
        attempts=desk.sent - desk.in_flight - desk.rate_limited - desk.shed if desk else 0,
        rate_limited=desk.rate_limited if desk else 0,
        shed=desk.shed if desk else 0,
        failed={**desk.failures} if desk else {},
        bound_s=monitor.bound_s,
        waits_for=status.waits_for if status else "",
        waits_until_s=status.waits_until_s if status else None,
    )


def end_of(monitor: Monitor, status: str, reason: str) -> SessionEnded:
    """How it ended; `reason` is empty where nothing stopped it."""
    last = progress_of(monitor)
    numbers = {each.name: getattr(last, each.name) for each in fields(last)}
    return SessionEnded(**numbers, status=status, reason=reason)
