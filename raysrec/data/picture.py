"""A prepared data set as a picture: how long histories are, how popular items, and what happened when.

It needs matplotlib: pip install 'raysrec[plot]'.
"""

from pathlib import Path
from typing import Any

import numpy as np

from raysrec.data.prepared import PreparedData
from raysrec.data.splits import HELD_OUT
from raysrec.data.statistics import Statistics, in_largest_unit
from raysrec.errors import LastingError

LENGTH_BINS = 40
"""Bars of the distribution of lengths, equally wide on a logarithmic axis."""

_CALENDAR = -6e10, 2.5e11
"""Unix seconds between which matplotlib knows dates: the years 69 to 9892."""

_COLOURS = {"all": "0.75", "learned": "tab:blue", "validation": "tab:orange", "test": "tab:red"}


def draw(data: PreparedData, found: Statistics, out: Path) -> None:
    """Write four panels as PNG, or as what the name's end says.

    Raises:
        LastingError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise LastingError(f"{out}: a picture needs matplotlib; pip install 'raysrec[plot]'") from None
    manifest = data.manifest
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    lengths, popularity, over_time, held_out = figure.subplots(2, 2).flat
    _draw_lengths(lengths, found)
    _draw_popularity(popularity, found)
    _draw_over_time(over_time, data, found)
    _draw_held_out(held_out, data, found)
    figure.suptitle(
        f"{manifest.name} ({manifest.fingerprint}): {manifest.num_users:,} users, {manifest.num_items:,} items, "
        f"{manifest.num_interactions:,} interactions\n{manifest.split}",
        fontsize="medium",
    )
    figure.savefig(out, dpi=110)


def _draw_lengths(axis: Any, found: Statistics) -> None:
    lengths = np.flatnonzero(found.users_of_length)
    # Whole numbers between which bars lie, so that none falls between two lengths.
    edges = np.unique(np.rint(np.geomspace(lengths[0], lengths[-1] + 1, LENGTH_BINS + 1)).astype(int))
    axis.hist(lengths, edges - 0.5, weights=found.users_of_length[lengths], color=_COLOURS["learned"])
    median = found.length_quantile(0.5)
    axis.axvline(median, color="black", linestyle="--", label=f"median {median:,}")
    axis.set_xscale("log")
    axis.set(title="Lengths of histories", xlabel="interactions of a user", ylabel="users (bars widen to the right)")
    axis.legend()
    _plain_numbers(axis.xaxis)


def _draw_popularity(axis: Any, found: Statistics) -> None:
    axis.plot(np.arange(1, len(found.item_counts) + 1), found.item_counts, color=_COLOURS["learned"])
    axis.set(xscale="log", yscale="log", title="Popularity", xlabel="rank of the item", ylabel="interactions")
    text = "\n".join(f"top {share:.0%} of items: {found.share_of_top(share):.1%}" for share in (0.01, 0.1))
    axis.text(0.04, 0.06, f"{text}\nGini {found.gini:.3f}", transform=axis.transAxes, va="bottom")
    for way in (axis.xaxis, axis.yaxis):
        _plain_numbers(way)


def _draw_over_time(axis: Any, data: PreparedData, found: Statistics) -> None:
    edges = _time_axis(axis, found)
    axis.stairs(found.interactions, edges, fill=True, color=_COLOURS["all"], label="all")
    axis.stairs(found.learned, edges, fill=True, color=_COLOURS["learned"], label="learned from")
    axis.set(title="Interactions in time", ylabel=f"interactions in {_width(found)}")
    _draw_moments(axis, data, edges)
    axis.legend()


def _draw_held_out(axis: Any, data: PreparedData, found: Statistics) -> None:
    edges = _time_axis(axis, found)
    for name in HELD_OUT:
        label = f"{name}: {data.manifest.num_ranked(name):,} users"
        axis.stairs(found.targets[name], edges, color=_COLOURS[name], linewidth=1.5, label=label)
    axis.set(title="Held-out items in time", ylabel=f"users in {_width(found)}")
    _draw_moments(axis, data, edges)
    axis.legend()


def _time_axis(axis: Any, found: Statistics) -> Any:
    """The edges as dates, where a calendar reaches, and an axis that shows them."""
    axis.margins(x=0.01)
    if not (_CALENDAR[0] < found.edges[0] and found.edges[-1] < _CALENDAR[1]):
        axis.set_xlabel("Unix time in seconds")
        return found.edges
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    axis.set_xlabel("time (UTC)")
    axis.xaxis_date()
    locator = AutoDateLocator()
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return found.edges / 86_400  # matplotlib counts days since 1970


def _draw_moments(axis: Any, data: PreparedData, edges: Any) -> None:
    rule = data.manifest.split
    if rule.name == "temporal":
        unit = (data.manifest.last_time + 1 - data.manifest.first_time) / (edges[-1] - edges[0])
        for moment, name in ((rule.validate_from, "validation"), (rule.test_from, "test")):
            axis.axvline(moment / unit, color=_COLOURS[name], linestyle=":", label=f"{name} begins")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def _width(found: Statistics) -> str:
    """How long a stretch of time is, in words."""
    return in_largest_unit(float(found.edges[1] - found.edges[0]))


def _plain_numbers(way: Any) -> None:
    """1,000 and not 10³ at the ticks of a logarithmic axis, and 20 and 50 only where it is short."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = way.get_view_interval()
    way.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1_000 * low else (1,)))
    way.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    way.set_minor_formatter(NullFormatter())
