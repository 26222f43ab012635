"""Plots of runs and trials, as plotly figures.

They carry no colours: what belongs to one run has its number in `meta`, and the page gives it the colour of that
number, light or dark (`draw.js`). A run has the same colour and the same mark in every figure.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = 8
"""Colours that can be told apart."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "cross")

Line = tuple[Sequence[int | float], Sequence[int | float]]
"""Places along x, and values."""

Interval = tuple[int | float, int | float, int | float]
"""A mean and its bounds."""


def lines(
    curves: Mapping[str, Line], numbers: Mapping[str, int], *, x: str, y: str, marked: bool = True
) -> "go.Figure":
    """A line per run.

    Args:
        curves: By run.
        numbers: The runs' numbers, from 0, which decide colours; a run without one is a thin grey line.
        x: What lies along the x axis.
        y: What lies along the y axis.
        marked: Is each value a mark?
    """
    figure = _figure(x=x, y=y)
    for name, (xs, ys) in curves.items():
        number = numbers.get(name)
        trace: dict[str, Any] = {"mode": "lines", "line": {"width": 1}, "opacity": 0.4, "meta": {"series": "quiet"}}
        if number is not None:
            trace = {"mode": "lines", "line": {"width": 1.8}, "meta": {"series": number}}
            if marked:
                trace |= {"mode": "lines+markers", "marker": _marker(number, 6)}
        figure.add_scatter(**trace, x=list(xs), y=list(ys), name=name, hovertemplate=_hover(name, "%{y:.4f}"))
    return figure


def intervals(
    groups: Mapping[str, Mapping[str, Interval]], numbers: Mapping[str, int], *, x: str, y: str
) -> "go.Figure":
    """For each group of users, a mark with its interval per run, beside each other.

    Args:
        groups: By the group's name, the runs' means and intervals.
        numbers: The runs' numbers.
        x: What the groups are made by.
        y: What is measured.
    """
    figure = _figure(x=x, y=y)
    labels = list(groups)
    names = list(dict.fromkeys(name for runs in groups.values() for name in runs))
    for place, name in enumerate(names):
        offset = (place - (len(names) - 1) / 2) * min(0.12, 0.7 / len(names))
        found = [(index + offset, runs[name]) for index, runs in enumerate(groups.values()) if name in runs]
        figure.add_scatter(
            x=[at for at, _ in found],
            y=[mean for _, (mean, _, _) in found],
            error_y=_error([interval for _, interval in found]),
            mode="markers",
            marker=_marker(numbers[name], 7),
            name=name,
            meta={"series": numbers[name]},
            customdata=[labels[round(at)] for at, _ in found],
            hovertemplate=_hover(name, "%{y:.4f}", "%{customdata}"),
        )
    figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels, showgrid=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def forest(
    scores: Mapping[str, Interval], numbers: Mapping[str, int], others: Mapping[str, Mapping[str, float]], *, x: str
) -> "go.Figure":
    """A row per run: its score with the interval, and what papers print for the same model.

    Args:
        scores: By run, best first.
        numbers: The runs' numbers.
        others: By source, the figure printed for each run's model.
        x: What is measured.
    """
    figure = _figure(x=x, y="")
    for name, interval in scores.items():
        figure.add_scatter(
            x=[interval[0]],
            y=[name],
            error_x=_error([interval]),
            mode="markers",
            marker=_marker(numbers[name], 8),
            name=name,
            showlegend=False,
            meta={"series": numbers[name]},
            hovertemplate=_hover(name, "%{x:.4f}"),
        )
    for place, (source, printed) in enumerate(others.items()):
        figure.add_scatter(
            x=list(printed.values()),
            y=list(printed),
            mode="markers",
            marker={"symbol": ("line-ns-open", "x-thin-open", "cross-thin-open")[place % 3], "size": 12},
            name=source,
            meta={"series": "ink"},
            showlegend=True,
            hovertemplate=_hover(source, "%{x:.4f}", "%{y}"),
        )
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    figure.update_layout(height=110 + 26 * len(scores), showlegend=bool(others), hovermode="closest")
    return figure


def points(
    names: Sequence[str], xs: Sequence[Any], ys: Sequence[int | float], *, x: str, y: str, log: bool = False
) -> "go.Figure":
    """A mark per trial."""
    figure = _figure(x=x, y=y)
    figure.add_scatter(
        x=list(xs),
        y=list(ys),
        mode="markers",
        marker={"size": 8, "opacity": 0.75},
        meta={"series": 0},
        customdata=list(names),
        hovertemplate="%{customdata}<br>%{x}<br>%{y:.4f}<extra></extra>",
    )
    if log:
        figure.update_xaxes(type="log", dtick=1, exponentformat="power")
    figure.update_layout(hovermode="closest")
    return figure


def front(figure: "go.Figure", xs: Sequence[int | float], ys: Sequence[int | float]) -> "go.Figure":
    """Draw the best that can be had for each time into a figure of trials."""
    line = {"shape": "hv", "width": 1.5}
    figure.add_scatter(x=list(xs), y=list(ys), mode="lines", line=line, meta={"series": 1}, hoverinfo="skip")
    return figure


def bars(shares: Mapping[str, int | float], *, x: str) -> "go.Figure":
    """A bar per name, the first on top."""
    figure = _figure(x=x, y="")
    text = [f"{share:.0%}" for share in shares.values()]
    figure.add_bar(
        x=list(shares.values()),
        y=list(shares),
        orientation="h",
        text=text,
        textposition="outside",
        cliponaxis=False,
        meta={"series": 0},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    figure.update_xaxes(range=[0, 1.08], tickformat=".0%")
    figure.update_layout(height=110 + 30 * len(shares), bargap=0.35, hovermode="closest")
    return figure


def _figure(*, x: str, y: str) -> "go.Figure":
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=330,
        margin={"l": 56, "r": 16, "t": 12, "b": 48},
        xaxis={"title": {"text": x, "standoff": 8}, "zeroline": False},
        yaxis={"title": {"text": y, "standoff": 8}, "zeroline": False, "automargin": True},
        showlegend=False,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        hovermode="closest",
    )
    return figure


def _marker(number: int, size: int) -> dict[str, Any]:
    return {"symbol": SYMBOLS[number % len(SYMBOLS)], "size": size}


def _error(found: Sequence[Interval]) -> dict[str, Any]:
    above = [high - mean for mean, _, high in found]
    below = [mean - low for mean, low, _ in found]
    return {"type": "data", "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}


def _hover(name: str, value: str, at: str = "%{x}") -> str:
    name = name.replace("<", "&lt;").replace("%{", "% {")
    return f"{name}<br>{at}: {value}<extra></extra>"
