"""Estimated and counted tokens: what answers teach, how far off estimates may be, and what a run begins with."""

from collections.abc import Mapping
from random import Random

import pytest
from servers import World, answer_all, dispatcher_for, documents, lognormal
from vclock import run

from pipeline.calibration import (
    EXACT,
    FIRST_BIAS,
    MOST_SPREAD,
    Calibration,
    Calibrations,
    Margin,
    t_quantile,
)
from pipeline.records import Limits, Step


def after(*answers: tuple[int, int]) -> Margin:
    """How estimates are read after these: estimated and counted tokens."""
    known = Calibrations()
    for estimated, counted in answers:
        known.observe("answer", estimated, counted)
    return known.margin("answer")


def noisy(number: int, ratio: float, spread: float, seed: int = 1) -> list[tuple[int, int]]:
    choose = Random(seed)
    estimates = [choose.randrange(500, 5000) for _ in range(number)]
    return [(each, round(each * ratio * choose.gauss(1.0, spread))) for each in estimates]


def test_before_any_answer_estimates_are_distrusted_together() -> None:
    margin = Calibrations().margin("map")
    assert (margin.ratio, margin.bias) == (1.0, FIRST_BIAS)
    assert 0 < margin.spread <= MOST_SPREAD
    assert margin.at_most(1000) > 1000 * (1 + margin.bias) >= 1000 / 0.7


@pytest.mark.parametrize("ratio", [0.7, 1.3])
def test_answers_correct_the_ratio_and_narrow_the_margin(ratio: float) -> None:
    margin = after(*noisy(200, ratio, 0.05))
    assert margin.ratio == pytest.approx(ratio, rel=0.03)
    assert margin.spread == pytest.approx(0.05, abs=0.015)
    assert margin.bias < 0.08
    assert margin.tokens(1000) == pytest.approx(1000 * ratio, rel=0.03)


def test_each_answer_narrows_the_margin_of_estimates_that_are_off_alike() -> None:
    biases = [after(*[(1000, 1200)] * number).bias for number in (0, 1, 4, 16, 64, 256)]
    assert biases == sorted(biases, reverse=True)
    assert biases[-1] < 0.01


def test_the_ratio_follows_the_answers_and_forgets_old_ones() -> None:
    assert after(*[(1000, 1200)] * 100).ratio == pytest.approx(1.2)
    assert after(*[(1000, 1200)] * 100, *[(1000, 1000)] * 34).ratio == pytest.approx(1.1, abs=0.02)  # .98 ** 34 = 1/2


def test_long_prompts_count_more_than_short_ones() -> None:
    assert after((10, 20), (10_000, 10_000)).ratio == pytest.approx(1.001, abs=0.0005)


def test_however_far_answers_are_off_a_prompt_is_held_to_no_more_than_the_most() -> None:
    assert after(*[(1000, 4000), (1000, 500)] * 30).spread == MOST_SPREAD


def test_estimates_that_are_always_right_need_hardly_any_margin() -> None:
    assert after(*[(1000, 1000)] * 300).at_most(1000) <= 1010


@pytest.mark.parametrize(("estimated", "counted"), [(0, 5), (5, 0), (-1, 5), (5, -1)])
def test_an_answer_without_a_count_teaches_nothing(estimated: int, counted: int) -> None:
    assert after((estimated, counted)).bias == FIRST_BIAS


def test_each_step_has_its_own() -> None:
    known = Calibrations()
    for _ in range(30):
        known.observe("map", 100, 200)
    assert known.margin("map").ratio == pytest.approx(2.0)
    assert known.margin("reduce").ratio == 1.0


def test_a_count_is_taken_as_it_is() -> None:
    assert EXACT.tokens(123) == EXACT.at_most(123) == 123


def sums(answers: list[tuple[int, int]]) -> Calibration:
    estimates, counts = zip(*answers, strict=True)
    products = sum(one * other for one, other in answers)
    squares = (sum(each * each for each in column) for column in (estimates, counts))
    return Calibration(len(answers), sum(estimates), sum(counts), next(squares), products, next(squares))


def test_a_run_begins_with_what_is_known_and_soon_goes_by_its_own_answers() -> None:
    known = sums(noisy(2000, 1.2, 0.05)).remembered()
    run = Calibrations({"answer": known})
    assert run.margin("answer").ratio == pytest.approx(1.2, rel=0.01)
    assert run.margin("answer").bias < 0.08
    for estimated, counted in noisy(100, 0.9, 0.05, seed=2):
        run.observe("answer", estimated, counted)
    assert run.margin("answer").ratio == pytest.approx(0.9, rel=0.06)


def test_what_others_texts_taught_counts_little() -> None:
    known = sums(noisy(2000, 1.2, 0.05))
    ours, theirs = known.remembered(), known.remembered(borrowed=True)
    assert theirs.ratio == pytest.approx(ours.ratio) and theirs.effective == pytest.approx(2.0, rel=0.01)
    assert ours.margin().bias < theirs.margin().bias < FIRST_BIAS
    run = Calibrations({"answer": theirs})
    for estimated, counted in noisy(10, 0.9, 0.05, seed=2):
        run.observe("answer", estimated, counted)
    assert run.margin("answer").ratio == pytest.approx(0.95, abs=0.05)
    assert Calibration().remembered() == Calibration()


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (1e9, 1.960)])
def test_the_quantile_of_student(freedom: float, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.01)


def test_the_quantile_of_student_falls() -> None:
    quantiles = [t_quantile(tenths / 10) for tenths in range(1, 400)]
    assert quantiles == sorted(quantiles, reverse=True)


@pytest.mark.parametrize("bias", [1.0, 1.3])
def test_a_run_that_begins_with_what_its_plan_knows_uses_its_first_minute(bias: float) -> None:
    """Before the first answer comes, after 20 s: without, only what would fit if all estimates were 30 % too low."""

    def in_15_s(known: Mapping[Step, Calibration] | None) -> float:
        world = World("counter", 10_000, 10**6, seed=1, latency=(20.0, 0.0))
        prompts = documents(world, lognormal(300, 5000, 1), bias=bias)
        run(lambda: answer_all(dispatcher_for(world, Limits(rpm=10_000, tpm=10**6), known=known), prompts))
        assert world.refused == []
        return sum(tokens for at, tokens in world.left if at < 15.0) / 1e6

    answers = noisy(100, 1 / bias, 0.08)
    assert in_15_s({"answer": sums(answers).remembered()}) > max(0.8, in_15_s(None) + 0.1)
