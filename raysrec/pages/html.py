"""From what a page shows to one HTML file that needs nothing else: no network, no folder beside it.

Everything that comes from a run is text to a browser and never markup (autoescape), and the page itself forbids the
browser to load or send anything (its Content-Security-Policy).
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    import plotly.graph_objects as go

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    series: int | None = None
    """The number of the run whose colour stands in it."""
    note: str = ""
    """Smaller, behind the text."""
    sort: int | float | str | None = None
    """What it is sorted by; its text if not said."""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a header row; its first column names the rows."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    quiet_rows: Sequence[Sequence[Cell]] = ()
    """Rows below the others that take no part in sorting, such as a baseline."""
    sortable: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and stand to the right."""
        rows = [*self.rows, *self.quiet_rows]
        columns = [[row[index] for row in rows if row[index].text] for index in range(len(self.headers))]
        return [
            index > 0 and any(map(_is_number, cells)) and not any(map(_is_word, cells))
            for index, cells in enumerate(columns)
        ]


def _is_number(cell: Cell) -> bool:
    return isinstance(cell.sort, int | float) or cell.text.replace(".", "", 1).isdecimal()


def _is_word(cell: Cell) -> bool:
    return not _is_number(cell) and cell.text != "–"


@dataclass(frozen=True)
class Plot:
    """A figure, what it shows in words, and its numbers as a table for those who do not see it."""

    title: str
    figure: "go.Figure"
    numbers: Table | None = None
    wide: bool = False
    """Does it need the whole width of the page?"""

    @property
    def json(self) -> Any:
        """What plotly.js draws."""
        return json.loads(self.figure.to_json())


@dataclass(frozen=True)
class Part:
    """A part of a page below its heading: text, tables, plots, in this order."""

    heading: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    code: str = ""
    key: Sequence[Cell] = ()
    """Names of the runs with their colours, where plots need them."""
    after: Sequence[str] = ()
    """Text behind the tables and plots: how they were made."""
    folded: Sequence[Table] = ()
    """Tables that are shown when asked for."""


@dataclass(frozen=True)
class Section:
    """One data set, or the whole of a sweep."""

    heading: str
    words: Sequence[str]
    parts: Sequence[Part] = field(default_factory=list)


def page(title: str, summary: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The HTML file.

    Args:
        title: Of the page.
        summary: What stands below it, by names.
        sections: What it shows, in order.
    """
    made = {"made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by raysrec {version('raysrec')}"}
    has_plots = any(part.plots for section in sections for part in section.parts)
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            summary=dict(summary) | made,
            sections=sections,
            style=(HERE / "style.css").read_text(),
            draw=(HERE / "draw.js").read_text(),
            plotly=_plotly() if has_plots else "",
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


@functools.cache
def _plotly() -> str:
    """The library that draws; 5 MB, so that the page draws without a network."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
