"""95 % intervals: the quantile of Student's t, and what is in doubt however much is known."""

LEAST_ERROR = 0.005
"""What a sum may always be off, however many answers: the next texts are not quite like the last."""


def t_quantile(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t; within 0.2 % from 3 degrees of freedom on, 1 % from 2, 12 % below.

    The expansion of Cornish and Fisher about the normal quantile.
    """
    if freedom <= 1:
        return 12.706
    z, n = 1.959964, freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4
