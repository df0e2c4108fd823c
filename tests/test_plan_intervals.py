import pytest

from pipeline.plan.intervals import t_quantile


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (1e9, 1.960)])
def test_the_quantile_of_student(freedom: float, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, rel=0.01)


def test_the_quantile_of_student_falls() -> None:
    quantiles = [t_quantile(tenths / 10) for tenths in range(1, 400)]
    assert quantiles == sorted(quantiles, reverse=True)
