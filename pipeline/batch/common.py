"""What the parts of the batch desk have in common: who is asked, what is told, when which batch is looked at again."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import anyio

from pipeline.batch.room import Room
from pipeline.budget.cashier import Cashier
from pipeline.models import assumed
from pipeline.providers.batches.base import Batches as Service
from pipeline.records import Failure
from pipeline.store.batch_states import Aside, BatchState, Stage
from pipeline.store.batches import Batches as Store
from pipeline.targets import Target

MOST_TRIES = 2
"""Batches in which one prompt is asked, before it is asked at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the run says of its batches. So many `prompts` are expected.

    `last_call` is when a batch of that number must have been answered, by the loop's clock: it may move, and is `inf`
    where nothing presses. `batch_tokens` may wait in batches by `Target.quota`, where the job says so. Time may pass
    faster for the batches of a rehearsal: they are asked after every second.
    """

    prompts: int = 0
    last_call: Callable[[int], float] = lambda number: inf
    is_rehearsal: bool = False
    batch_tokens: Mapping[str, int] = field(default_factory=dict)
    leaves: bool = False  # nobody waits for batches here, and so no prompt for the room that they will leave
    changes: str | None = None  # what `--set` changed of the job, as JSON


@dataclass(slots=True)
class Common:
    """See the top. `stop` ends the run for a failure with which no batch would fare better."""

    store: Store
    services: Mapping[Target, Service]
    cashier: Cashier
    room: Room
    tell: Callable[[str], None]
    stop: Callable[[Failure], None]
    wall: Callable[[], float]  # epoch seconds
    plan: Plan
    due: dict[int, float] = field(default_factory=dict)  # when a batch is looked at again, by the loop's clock
    is_over: bool = False  # it is the last call for all of them

    def target_of(self, state: BatchState) -> Target | None:
        """Who was asked; None where the job names another project or key now.

        Another model, or another name of the target, is no hindrance.
        """
        asked = self._asked(state)
        return replace(asked, model=state.model) if asked else None

    def as_it_was(self, state: BatchState) -> Target:
        """Whoever was asked, of whom the job says no more than of the others."""
        provider, _, host = state.endpoint.partition("@")
        project = state.account.rpartition("/")[2]
        like = next((each for each in self.services if each.model == state.model), next(iter(self.services)))
        own = replace(like, provider=provider, base_url=f"https://{host}", project=project)
        return replace(own, model=state.model, name=state.target)

    def service_of(self, state: BatchState) -> Service | None:
        """Who speaks for that."""
        asked = self._asked(state)
        return self.services[asked] if asked else None

    def _asked(self, state: BatchState) -> Target | None:
        same = [each for each in self.services if each.account == state.account]
        return next((each for each in same if each.name == state.target), same[0] if same else None)

    def by_service(self, states: Iterable[BatchState]) -> list[tuple[Service, list[BatchState]]]:
        """The batches of each service."""
        found: dict[int, tuple[Service, list[BatchState]]] = {}
        for state in states:
            if (service := self.service_of(state)) is not None:
                found.setdefault(id(service), (service, []))[1].append(state)
        return list(found.values())

    def note(self, number: int, event: Stage | Aside, **told: Any) -> BatchState:
        """Note an event of a batch, as of now."""
        return self.store.note(number, event, at=self.wall(), **told)

    def is_due(self, state: BatchState) -> bool:
        """Whether it is to be looked at now."""
        return self.due.get(state.number, 0.0) <= anyio.current_time()

    def again_in(self, number: int, seconds: float) -> None:
        """Look at a batch again so much later."""
        self.due[number] = anyio.current_time() + seconds

    def is_called(self, number: int) -> bool:
        """Whether a batch is not handed in any more, or is to be cancelled; 0: one that is not cut yet."""
        return self.is_over or anyio.current_time() >= self.plan.last_call(number)

    def first_tokens(self, state: BatchState) -> int:
        """Tokens that may wait in its quota's batches, while nothing is known of that."""
        return assumed(state.model).batch_tokens

    def own_tokens(self, state: BatchState) -> int | None:
        """The same where the job says so."""
        return self.plan.batch_tokens.get(quota_of(state))

    def allowed_tokens(self, quota: str, model: str) -> int:
        """The same, as it is known."""
        return self.plan.batch_tokens.get(quota) or self.room.tokens_of(quota, assumed(model).batch_tokens)


def quota_of(state: BatchState) -> str:
    """What its tokens are counted by: as `Target.quota`."""
    return f"{state.account}/{state.model}"
