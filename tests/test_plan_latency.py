"""How long a batch takes: the prior, own batches, and those that are still waited for."""

from math import exp, inf, isclose, log
from random import Random

import pytest

from pipeline.plan.latency import LONGEST_S, Latency, Seen, learned

HOUR_S = 3600.0


@pytest.mark.parametrize(("hours", "share"), [(1, 0.38), (2, 0.55), (4, 0.69), (8, 0.83), (12, 0.90), (24, 0.95)])
def test_without_a_batch_of_ones_own_it_is_what_users_told(hours: int, share: float) -> None:
    assert Latency().done_by(hours * HOUR_S) == pytest.approx(share, abs=0.006)


def test_a_batch_that_is_out_for_long_is_less_likely_to_come() -> None:
    young, old = Latency().done_by(HOUR_S), Latency().done_by(HOUR_S, age_s=20 * HOUR_S)
    assert old < 0.1 < young
    assert Latency().done_by(0.0) == Latency().done_by(-5.0) == 0.0


def test_quick_batches_are_believed_more_the_more_there_are() -> None:
    chances = [learned([Seen(300.0, "done")] * number).done_by(600.0) for number in (0, 5, 20, 200)]
    assert chances == sorted(chances)
    assert chances[2] == pytest.approx((chances[0] + 1) / 2)  # the prior weighs as twenty
    assert chances[3] > 0.9


def test_an_old_batch_counts_less() -> None:
    new, old = (learned([Seen(300.0, "done", weight)] * 20) for weight in (1.0, 0.25))
    assert old.done_by(600.0) == pytest.approx(learned([Seen(300.0, "done")] * 5).done_by(600.0))
    assert Latency().done_by(600.0) < old.done_by(600.0) < new.done_by(600.0)


def test_what_failed_or_expired_never_comes() -> None:
    known = learned([Seen(60.0, "never")] * 20)
    assert known.done_by(LONGEST_S) == pytest.approx(0.95 / 2, abs=0.01)


def test_one_that_is_waited_for_says_only_that_it_takes_longer() -> None:
    waiting = learned([Seen(4 * HOUR_S, "open")] * 20)
    assert waiting.done_by(2 * HOUR_S) == pytest.approx(Latency().done_by(2 * HOUR_S) / 2)
    later = [waiting.done_by(HOUR_S, age_s=4 * HOUR_S), Latency().done_by(HOUR_S, age_s=4 * HOUR_S)]
    assert isclose(*later, rel_tol=1e-9)  # of what comes after, nothing was learned
    assert learned([Seen(0.0, "open")] * 50).done_by(HOUR_S) == pytest.approx(Latency().done_by(HOUR_S))


def test_the_share_that_is_done_never_falls_with_time() -> None:
    rng = Random(5)
    for _ in range(50):
        seen = [
            Seen(rng.choice((rng.uniform(0, LONGEST_S), 3600.0)), rng.choice(("done", "never", "open")), rng.random())
            for _ in range(rng.randrange(30))
        ]
        known = learned(seen)
        shares = [known.done_by(minutes * 60.0) for minutes in range(0, 3000, 7)]
        assert shares == sorted(shares)
        assert shares[0] >= 0.0 and shares[-1] < 1.0


def test_it_finds_the_truth_though_half_are_given_up_early() -> None:
    """Counting those that were cancelled as done then, or leaving them out, would be far off."""
    rng = Random(7)
    seen = []
    for _ in range(4_000):
        takes_s, patience_s = HOUR_S * exp(rng.gauss(log(2), 0.7)), rng.uniform(0, 6 * HOUR_S)
        seen.append(Seen(takes_s, "done") if takes_s < patience_s else Seen(patience_s, "open"))
    known = learned(seen)
    assert known.within(0.5) / HOUR_S == pytest.approx(2.0, rel=0.05)
    done = sorted(one.seconds for one in seen if one.end == "done")
    assert done[len(done) // 2] / HOUR_S < 1.7


def test_the_time_within_which_a_share_is_done() -> None:
    for share in (0.1, 0.5, 0.9):
        assert Latency().done_by(Latency().within(share)) == pytest.approx(share, abs=0.001)
    assert Latency().within(0.99) == inf
