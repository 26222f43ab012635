"""What is asked of `recommend.py`: whom to recommend to, and how a file of their histories is read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from raysrec.config import DataConfig
from raysrec.config.files import read
from raysrec.config.loading import validate_section
from raysrec.config.run import RunConfig
from raysrec.config.settings import overlay
from raysrec.data.prepared import PreparedData
from raysrec.data.preparing.fingerprint import stamp_of
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.formats import format_of
from raysrec.errors import ReadableError
from raysrec.models import MODELS
from raysrec.place import Place
from raysrec.run_directory import RunDirectory, RunError

UNTIL = ("all", "test", "validation")
"""What of a history is read: all of it, or what came before the item that is ranked in evaluation."""

FILE_KEYS = ("format", "columns", "where", "time_unit", "time_precision", "separator")
"""Settings of `data` that say how a file of histories is read."""


@dataclass(frozen=True)
class Request:
    """Whom to recommend to, and how many items."""

    k: int = 10
    """Length of a list."""
    until: str = "all"
    """Of users of the run's data: one of `UNTIL`."""
    users: DataConfig | None = None
    """A file of histories; None for users of the run's data."""
    user_ids: str | None = None
    """A text file with ids of users of the run's data, one a line; None for all of them."""


def refuse_impossible(config: RunConfig, request: Request, data: PreparedData) -> None:
    """Say what the run cannot do, before anything is begun.

    Raises:
        RunError: Lists are asked for that are longer than the catalogue, or users whom the model cannot know.
    """
    if not 1 <= request.k <= data.manifest.num_items:
        raise RunError(f"--k {request.k}: expected 1 to {data.manifest.num_items}, so many items are in the catalogue")
    if request.users and MODELS[config.model.name].has_user_vectors:
        raise RunError(
            f"--users {request.users.source}: model.name={config.model.name} has learned a vector for each user of its "
            "data, and has none for others; leave --users out (--user-ids chooses some of its own), or train a model "
            "that reads histories only"
        )


def settings_of(run: RunDirectory, config: RunConfig, request: Request, data: PreparedData) -> dict[str, Any]:
    """All that decides what is recommended: with the same settings, the same."""
    if request.users:
        with about_file():
            stamp = stamp_of(request.users)
        whom = {"file": request.users.source, "stamp": str(stamp)}
        whom |= request.users.model_dump(mode="json", include=set(FILE_KEYS))
    else:
        whom = {"until": request.until}
    if request.user_ids is not None:
        ids = Place.of(request.user_ids).absolute()
        whom |= {"ids": str(ids), "stamp": str(ids.stamp())}
    return {
        "run": str(run.path.absolute()),
        "weights": run.weights_stamp(),
        "data": data.manifest.fingerprint,
        "users": whom,
        "k": request.k,
        "exclude_seen": config.evaluate.exclude_seen,
    }


def users_file(name: str, run: RunConfig, overrides: Sequence[str]) -> DataConfig:
    """How a file of histories is read: as the run's own source was if it is in the same format, else by its name.

    Args:
        name: Its path or URI; also a folder or a pattern.
        run: The run's configuration.
        overrides: `data.key=value` over that.

    Raises:
        ConfigError: An override cannot be.
        SourceError: There is no such file, or its name says nothing.
    """
    given = _data_config(read([], overrides).get("data", {})).model_dump(mode="json", exclude_unset=True)
    file = _data_config(overlay({"source": name}, given))
    with about_file():
        kind = format_of(file)
    with suppress(ReadableError):  # the run's own source may be gone
        if kind == format_of(run.data):
            like = run.data.model_dump(mode="json", include=set(FILE_KEYS))
            return _data_config(overlay(overlay(like, given), {"source": name, "synthetic": _synthetic(run)}))
    return file


@contextmanager
def about_file() -> Iterator[None]:
    """Readers' errors name `data.source`, which here is `--users`."""
    try:
        yield
    except SourceError as error:
        raise SourceError(str(error).replace("data.source=", "--users ").replace("data.source:", "--users:")) from None


def _synthetic(run: RunConfig) -> dict[str, Any]:
    return run.data.synthetic.model_dump(mode="json")


def _data_config(settings: dict[str, Any]) -> DataConfig:
    return validate_section(DataConfig, "data", settings)
