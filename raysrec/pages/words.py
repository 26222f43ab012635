"""Numbers and durations as a page writes them."""

import math

from raysrec.pages.html import Cell


def score(
    mean: int | float | None, low: int | float | None = None, high: int | float | None = None, *, strong: bool = False
) -> Cell:
    """A score with the half-width of its interval; empty where there is none."""
    if mean is None or math.isnan(mean):
        return Cell("")
    note = "" if low is None or high is None else f"±{(high - low) / 2:.4f}"
    return Cell(f"{mean:.4f}", note=note, sort=mean, strong=strong)


def signed(value: int | float) -> str:
    """With its sign; minus as it is printed."""
    return f"{value:+.4f}".replace("-", "−")


def p_value(p: int | float) -> str:
    """A p-value, as exact as it is worth."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: int | float | None) -> Cell:
    """Hours, minutes and seconds, the two largest that are not zero."""
    if seconds is None or math.isnan(seconds):
        return Cell("")
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    text = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return Cell(text, sort=seconds)


def number(value: int | float | None, form: str = ",.0f") -> Cell:
    """A number; empty where there is none."""
    return Cell("") if value is None or math.isnan(value) else Cell(format(value, form), sort=value)


def count(n: int, one: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {one if n == 1 else one + 's'}"


def setting(value: object) -> str:
    """A setting's value."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
