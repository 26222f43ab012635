"""Figures that papers print, read from YAML files such as those in `configs/published/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raysrec.errors import LastingError

DEFAULT = Path(__file__).parents[2] / "configs" / "published"
"""Those that come with a checkout of raysrec."""


class PublishedError(LastingError):
    """A file of published figures that does not read as one."""


@dataclass(frozen=True)
class Published:
    """One model's figures in one paper's table."""

    source: str
    data: str
    model: str
    scores: dict[str, float]
    """By metric."""


def read_published(folder: Path) -> list[Published]:
    """Every figure in a folder of YAML files; none if there is no such folder.

    Raises:
        PublishedError: A file has another layout.
    """
    return [figure for path in sorted(folder.glob("*.yaml")) for figure in _figures(path)]


def _figures(path: Path) -> list[Published]:
    try:
        paper: Any = yaml.safe_load(path.read_text())
        return [
            Published(str(paper["source"]), data, model, dict(zip(paper["metrics"], map(float, scores), strict=True)))
            for data, models in paper["results"].items()
            for model, scores in models.items()
        ]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise PublishedError(
            f"{path}: expected source, metrics and results: {{data: {{model: [a score per metric]}}}}, "
            f"but {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
