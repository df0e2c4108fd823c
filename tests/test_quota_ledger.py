from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import SERVERS

from pipeline.calibration import EXACT, Margin
from pipeline.quota.ledger import DEVIATIONS, Charge, TokenLedger
from pipeline.quota.pacer import JITTER_S, WINDOW_S
from pipeline.quota.server_clock import MinutePhase

LIMIT = 1000


@dataclass
class KnownPhase(MinutePhase):
    """A phase that is known from the start, between two bounds, or not at all."""

    known: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.known


def brute_force(charges: list[tuple[float, int]], now: float, bounds: tuple[float, float] | None) -> float:
    """The most a server can have counted, straight from the definition."""

    def since(instant: float) -> int:
        return sum(tokens for at, tokens in charges if at >= instant)

    log = since(now - WINDOW_S - JITTER_S)
    if bounds is None:
        ages = [max(0.0, now - JITTER_S - at) for at, _ in charges]
        phases = [a % WINDOW_S for a in ages] + [0.0, WINDOW_S]
        phases += [WINDOW_S for a in ages if a in (WINDOW_S, 2 * WINDOW_S)]

        def counted(p: float) -> float:
            current = sum(c for a, (_, c) in zip(ages, charges, strict=True) if a <= p)
            both = sum(c for a, (_, c) in zip(ages, charges, strict=True) if a <= p + WINDOW_S)
            return p / WINDOW_S * current + (1 - p / WINDOW_S) * both

        return max(log, *(counted(p) for p in phases))
    low, high = bounds
    elapsed = (now + low) % WINDOW_S
    began = now - elapsed - (high - low) - JITTER_S
    current = since(began)
    return max(log, current + (since(began - WINDOW_S) - current) * (1 - elapsed / WINDOW_S))


STEPS = st.lists(
    st.tuples(
        st.floats(0.06, 45.0),  # seconds since the step before
        st.integers(1, LIMIT // 2),  # tokens
        st.sampled_from(["keep", "settle", "release"]),  # what becomes of it, some steps later
        st.integers(0, 5),  # how many steps later
        st.floats(0.0, 1.5),  # actual tokens / reserved
    ),
    max_size=60,
)
PHASES = st.none() | st.tuples(st.floats(-90.0, 90.0), st.floats(0.0, 4.0)).map(lambda p: (p[0], p[0] + p[1]))


@pytest.mark.parametrize("seed", range(3))
def test_sums_hold_where_a_clock_has_whole_milliseconds_and_several_requests_leave_in_one(seed: int) -> None:
    """As uvloop's does. Nobody asks what is used until the phase is known, minutes after the first were dropped."""
    chance, phase = Random(seed), KnownPhase()
    ledger = TokenLedger(LIMIT, phase)
    charges: list[tuple[float, int]] = []
    ms = 11_000_000
    while ms < 11_140_000:
        ms += chance.choice([0, 0, 1, 2])
        tokens = chance.randint(1, 9)
        ledger.reserve(ms / 1000, tokens)
        charges.append((ms / 1000, tokens))
    phase.known = (3.0, 3.0)
    now = ms / 1000
    assert ledger.used(now) == pytest.approx(brute_force(charges, now, phase.known))
    counted = [tokens for at, tokens in charges if at >= now - WINDOW_S - JITTER_S]
    assert ledger.last_minute(now) == (len(counted), sum(counted))


@settings(max_examples=150, deadline=None)
@given(STEPS, PHASES)
def test_used_is_the_sum_by_definition_whatever_is_settled_and_released(
    steps: list[tuple[float, int, str, int, float]], bounds: tuple[float, float] | None
) -> None:
    ledger = TokenLedger(LIMIT, KnownPhase(bounds))
    now = 0.0
    due: list[tuple[int, Charge, int, str, int]] = []
    charges: list[tuple[float, int]] = []
    for index, (wait, tokens, fate, later, part) in enumerate(steps):
        now += wait
        charge = ledger.reserve(now, tokens)
        charges.append((now, tokens))
        due.append((index + later, charge, index, fate, round(tokens * part)))
        for _, one, which, its_fate, actual in [entry for entry in due if entry[0] == index]:
            if its_fate == "release":
                ledger.release(one)
            else:
                ledger.settle(one, None if its_fate == "keep" else actual)
            if its_fate != "keep":
                charges[which] = (charges[which][0], 0 if its_fate == "release" else actual)
        due = [entry for entry in due if entry[0] > index]
        now += 0.06  # past the time for which the bound over all phases is kept
        assert ledger.used(now) == pytest.approx(brute_force(charges, now, bounds), abs=1e-6)


@pytest.mark.parametrize("server", SERVERS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.none() | st.floats(0.0, 4.0), where=st.floats(0.0, 1.0))
def test_what_fits_is_admitted_by_every_server_whatever_the_delays(
    server: str, seed: int, width: float | None, where: float
) -> None:
    """Random charges, sent as soon as they fit, arriving up to the jitter late, at a server of any phase."""
    rng = Random(seed)
    offset = rng.uniform(0.0, WINDOW_S)
    bounds = None if width is None else (offset - where * width, offset + (1 - where) * width)
    ledger = TokenLedger(LIMIT, KnownPhase(bounds))
    now, arrivals = 0.0, []
    for _ in range(70):
        now += rng.expovariate(1 / 1.5)
        tokens = min(LIMIT, int(rng.paretovariate(1.1) * 20))
        for _ in range(20_000):
            if ledger.room(now) >= tokens:
                break
            now = max(now + 1e-6, ledger.fits_at(now, tokens))
        charge = ledger.reserve(now, tokens)
        fate = rng.random()
        if fate < 0.1:
            ledger.release(charge)
            continue
        actual = tokens if fate < 0.6 else int(tokens * rng.random())
        ledger.settle(charge, actual)
        arrivals.append((now + rng.uniform(0.0, JITTER_S), actual))
    model = SERVERS[server](LIMIT)
    for at, tokens in sorted(arrivals):
        assert model.delay(at + offset, tokens) <= 1e-6
        model.add(at + offset, tokens)


def test_a_known_phase_leaves_more_room_than_none() -> None:
    def sent_in_ten_minutes(phase: KnownPhase) -> int:
        ledger, now, sent = TokenLedger(LIMIT, phase), 0.0, 0
        while now < 600.0:
            if ledger.room(now) >= 37:
                ledger.settle(ledger.reserve(now, 37), None)
                sent += 37
            now = max(now + 0.05, ledger.fits_at(now, 37)) if ledger.room(now) < 37 else now + 0.05
        return sent

    known, unknown = sent_in_ten_minutes(KnownPhase((10.0, 10.2))), sent_in_ten_minutes(KnownPhase(None))
    assert known > 0.97 * 10 * LIMIT
    assert 0.8 * known < unknown <= known


@given(
    st.lists(st.tuples(st.integers(1, 200), st.floats(0.0, 0.3), st.floats(0.0, 0.5)), max_size=8),
    st.floats(0.0, 0.3),
    st.floats(0.0, 0.5),
)
def test_room_solves_its_equation(open_charges: list[tuple[int, float, float]], spread: float, bias: float) -> None:
    ledger = TokenLedger(LIMIT, KnownPhase((0.0, 0.1)))
    variance = open_bias = 0.0
    for tokens, one_spread, one_bias in open_charges:
        ledger.reserve(1.0, tokens, Margin(1.0, one_spread, one_bias))
        variance += (one_spread * tokens) ** 2
        open_bias += one_bias * tokens
    room = ledger.room(1.0, Margin(1.0, spread, bias))
    if room <= 0 or not open_charges:
        return
    needed = room * (1 + bias) + open_bias + DEVIATIONS * (variance + (spread * room) ** 2) ** 0.5
    assert ledger.used(1.0) + needed == pytest.approx(LIMIT)


def test_an_empty_ledger_takes_a_prompt_of_the_whole_limit_however_uncertain() -> None:
    ledger = TokenLedger(LIMIT, MinutePhase())
    assert ledger.room(0.0, Margin(1.0, 0.15, 0.45)) == LIMIT


def test_a_reservation_is_closed_once() -> None:
    ledger = TokenLedger(LIMIT, MinutePhase())
    charge = ledger.reserve(0.0, 10)
    ledger.settle(charge, 12)
    with pytest.raises(RuntimeError, match="twice"):
        ledger.release(charge)


def test_closing_frees_the_margin_and_the_count_in_flight() -> None:
    ledger = TokenLedger(LIMIT, KnownPhase((0.0, 0.1)))
    charge = ledger.reserve(0.0, 100, Margin(1.0, 0.2, 0.1))
    assert ledger.in_flight() == (1, 100)
    before = ledger.room(1.0)
    ledger.settle(charge, 100)
    assert ledger.in_flight() == (0, 0)
    assert ledger.room(1.0) == LIMIT - 100
    assert before == pytest.approx(LIMIT - 100 - 10 - DEVIATIONS * 20)


def test_a_released_charge_counts_neither_tokens_nor_a_request() -> None:
    ledger = TokenLedger(LIMIT, MinutePhase())
    ledger.settle(ledger.reserve(0.0, 100), None)
    ledger.release(ledger.reserve(1.0, 300))
    assert ledger.last_minute(2.0) == (1, 100)
    assert ledger.since(0.5) == (0, 0)


@pytest.mark.parametrize("counted", [False, True])
def test_one_more_request_waits_until_a_fallen_limit_has_room(counted: bool) -> None:
    ledger = TokenLedger(LIMIT, KnownPhase((0.0, 0.0)))
    for second in range(30):
        ledger.settle(ledger.reserve(float(second), 1), None)
    assert ledger.request_fits_at(29.0, 31, counted=counted) <= 29.0
    fits_at = ledger.request_fits_at(29.0, 21, counted=counted)
    if counted:  # this minute holds 30 already: not before the next one has covered a third of it
        assert fits_at >= 60.0
    else:
        assert fits_at == pytest.approx(9 + WINDOW_S + JITTER_S, abs=0.1)


def test_memory_is_bounded_and_sums_stay_right_over_hours() -> None:
    ledger = TokenLedger(10**9, KnownPhase((0.0, 0.1)))
    for step in range(20_000):
        ledger.settle(ledger.reserve(step * 0.5, 7), None)
        ledger.used(step * 0.5)
    now = 19_999 * 0.5
    assert len(ledger._charges) < 3_000
    assert ledger.last_minute(now) == (121, 121 * 7)


def test_times_of_fitting_are_reached_and_not_passed_by_much() -> None:
    """Waiting as long as `fits_at` says, again and again, leads to the first instant that has room."""
    rng = Random(3)
    for bounds in (None, (5.0, 5.5)):
        ledger, now, waits = TokenLedger(LIMIT, KnownPhase(bounds)), 0.0, 0
        sends = []
        for _ in range(200):
            tokens = rng.randrange(10, 300)
            while ledger.room(now) < tokens:
                later = ledger.fits_at(now, tokens)
                assert later > now
                now, waits = later, waits + 1
            ledger.settle(ledger.reserve(now, tokens), None)
            sends.append((now, tokens))
        assert all(a <= b for (a, _), (b, _) in pairwise(sends))
        assert waits < (60_000 if bounds is None else 2_000)


def test_exact_trust_adds_no_margin() -> None:
    assert EXACT.tokens(7) == 7
    ledger = TokenLedger(LIMIT, KnownPhase((0.0, 0.1)))
    ledger.reserve(0.0, 400)
    assert ledger.room(1.0) == pytest.approx(600)


@pytest.mark.parametrize("bounds", [None, (0.0, 0.1)])
def test_a_charge_counts_in_full_until_its_latest_arrival_is_a_minute_old(bounds: tuple[float, float] | None) -> None:
    ledger = TokenLedger(LIMIT, KnownPhase(bounds))
    ledger.settle(ledger.reserve(1.0, 100), None)
    assert ledger.used(1.0 + WINDOW_S + JITTER_S - 0.01) == 100
    assert ledger.used(1.0 + WINDOW_S + JITTER_S + 0.01) < 100 or bounds is None
    assert ledger.used(1.0 + 2 * WINDOW_S + JITTER_S + 0.2) == 0


def test_a_minute_that_has_had_more_than_the_one_before_is_new_ground() -> None:
    ledger = TokenLedger(10**9, KnownPhase((0.0, 0.1)))
    for second in range(0, 60, 3):
        ledger.settle(ledger.reserve(float(second), 1), None)
    reached = []
    for second in range(60, 120):
        ledger.settle(ledger.reserve(float(second), 1), None)
        if ledger.on_new_ground(float(second)):
            reached.append(second)
    assert reached == list(range(reached[0], 120))
    assert reached[0] == pytest.approx(80, abs=1), "the minute before had 20"


def test_without_the_servers_minute_there_is_no_new_ground() -> None:
    ledger = TokenLedger(10**9, KnownPhase(None))
    ledger.settle(ledger.reserve(0.0, 1), None)
    assert not ledger.on_new_ground(1.0)


def test_what_is_heard_of_late_counts_from_when_it_left_and_can_be_corrected() -> None:
    ledger = TokenLedger(LIMIT, KnownPhase())
    ledger.settle(ledger.reserve(10.0, 100), None)
    heard = ledger.reserve(12.0, 300)  # at 20
    ledger.settle(heard, None)
    late = ledger.reserve(5.0, 50)  # left before our last
    ledger.settle(late, None)
    assert ledger.last_minute(20.0) == (3, 450)
    ledger.correct(heard, 200)
    assert ledger.last_minute(20.0) == (3, 350)
    assert ledger.last_minute(12.1 + WINDOW_S + JITTER_S) == (0, 0)
    assert late.at == 12.0, "in order: safe, as later is longer counted"


@given(st.integers(0, LIMIT), st.integers(1, LIMIT // 2))
def test_a_prompt_fits_when_there_is_no_surplus(used: int, tokens: int) -> None:
    ledger = TokenLedger(LIMIT, KnownPhase(known=(0.0, 0.0)))
    if used:
        ledger.reserve(1.0, used, Margin(1.0, 0.1, 0.05))
    margin = Margin(1.0, 0.1, 0.05)
    surplus = ledger.surplus(2.0, tokens, margin)
    if used and abs(surplus) > 1e-6:
        assert (tokens <= ledger.room(2.0, margin)) == (surplus < 0)
