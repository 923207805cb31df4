"""Figures as text for pages, the same everywhere."""

import math
import re
from typing import Any


def number(value: Any, digits: int = 3) -> str:
    """A figure as text: integers whole, floats to `digits` decimals (small ones to as many significant).

    >>> number(0.86123), number(12000), number(0.000123), number(None), number(True)
    ('0.861', '12,000', '0.000123', '–', 'yes')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        small = 0 < abs(value) < 10 ** (1 - digits)
        return f"{value:.{digits}g}" if small else f"{value:,.{digits}f}"
    return str(value)


def short(value: Any) -> str:
    """Any JSON scalar as text, for facts of unknown kind: four significant digits, times as dates.

    >>> short(0.712345), short(1725), short("2024-11-07T21:21:20+00:00")
    ('0.7123', '1,725', '2024-11-07')
    """
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d.*", value):
        return value[:10]
    return number(value)


def percent(value: float | None) -> str:
    """A share as text.

    >>> percent(0.0987)
    '9.9 %'
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def plus_minus(mean: float, sd: float | None) -> str:
    """Mean and standard deviation to the same decimals: three, or three significant digits of a small mean.

    >>> plus_minus(0.78004, 0.00459), plus_minus(0.003279, 0.000182), plus_minus(1.5, None)
    ('0.780 ± 0.005', '0.00328 ± 0.00018', '1.500')
    """
    small = math.floor(math.log10(abs(mean))) if mean else 0
    decimals = max(3, 2 - small)
    return f"{mean:.{decimals}f}" + ("" if sd is None else f" ± {sd:.{decimals}f}")
