"""From files laid over each other, and `key=value` on top, to one RunConfig; errors in words."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from raysrec.config.files import ConfigError, read
from raysrec.config.mistakes import mistake
from raysrec.config.run import RunConfig
from raysrec.place import AnyPath
from raysrec.schema import Section

Checked = TypeVar("Checked", bound=Section)


def load(paths: Sequence[AnyPath], overrides: Sequence[str] = ()) -> RunConfig:
    """Lay the files over each other in order, then the overrides, and check the result.

    Args:
        paths: YAML files, here or in a store; a later one wins key by key.
        overrides: `section.key=value`, the value read as YAML.

    Raises:
        ConfigError: A file is missing or no YAML, a key is unknown, a value is wrong, or a combination impossible.
    """
    return validate(read(paths, overrides))


def validate(settings: Mapping[str, Any]) -> RunConfig:
    """A RunConfig of nested settings, or a ConfigError with one line per mistake."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(mistake(detail, detail["loc"]) for detail in error.errors())) from None


def validate_section(section: type[Checked], name: str, settings: Mapping[str, Any]) -> Checked:
    """One section alone, of that name, or a ConfigError as of the whole."""
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        lines = (mistake(detail, (name, *detail["loc"])) for detail in error.errors())
        raise ConfigError("\n".join(lines)) from None
