"""Every key that there is, with its default and meaning, as the schema states them."""

from collections.abc import Iterator
from typing import NamedTuple

from pydantic_core import PydanticUndefined

from raysrec.config.run import RunConfig
from raysrec.models import MODELS
from raysrec.schema import Section


class Key(NamedTuple):
    """A setting."""

    name: str
    default: str
    meaning: str


def keys_of(section: type[Section], prefix: str = "") -> Iterator[Key]:
    """The keys of a section and of those in it; not those of a model, which depend on its name."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        elif prefix or name != "model":
            default = "required" if field.default is PydanticUndefined else str(field.default)
            yield Key(f"{prefix}{name}", default, " ".join((field.description or "").split()))


def names_of_keys(model: str | None) -> Iterator[str]:
    """Sections, their keys, and the keys of one model; of all models where it is not known which is meant."""
    yield from RunConfig.model_fields
    yield from (key.name for key in keys_of(RunConfig))
    for name in [model] if model else MODELS:
        yield from (key.name for key in keys_of(MODELS[name].Config, "model."))
