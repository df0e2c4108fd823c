from random import Random

import pytest

from pipeline.quota.estimates import EXACT, FIRST_BIAS, Estimates


def test_before_any_answer_estimates_are_distrusted_together() -> None:
    trust = Estimates().trust("map")
    assert (trust.ratio, trust.bias) == (1.0, FIRST_BIAS)
    assert trust.spread > 0.1
    assert trust.at_most(1000) > 1000 * (1 + trust.bias) >= 1000 / 0.7


@pytest.mark.parametrize("bias", [0.7, 1.3])
def test_answers_correct_the_ratio_and_narrow_the_margin(bias: float) -> None:
    estimates, rng = Estimates(), Random(1)
    for _ in range(200):
        true = rng.randrange(500, 5000)
        estimates.observe("answer", round(true * bias * rng.gauss(1.0, 0.05)), true)
    trust = estimates.trust("answer")
    assert trust.ratio == pytest.approx(1 / bias, rel=0.03)
    assert trust.bias < 0.08
    assert trust.tokens(1000) == pytest.approx(1000 / bias, rel=0.03)


def test_each_step_has_its_own() -> None:
    estimates = Estimates()
    for _ in range(30):
        estimates.observe("map", 100, 200)
    assert estimates.trust("map").ratio == pytest.approx(2.0)
    assert estimates.trust("reduce").ratio == 1.0
    assert len(list(estimates)) == 2


def test_a_count_is_taken_as_it_is() -> None:
    assert EXACT.tokens(123) == EXACT.at_most(123) == 123
