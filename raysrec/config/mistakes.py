"""What pydantic finds wrong with settings, in words that name the key, what came, and what to do."""

import difflib
from collections.abc import Iterable, Sequence

from pydantic_core import ErrorDetails

from raysrec.config.keys import names_of_keys
from raysrec.errors import did_you_mean
from raysrec.models import MODELS

_EXPECTED = {"string_type": "text; put it in quotes", "tuple_type": "a list, such as [1, 2]"}
"""What pydantic would say in terms of Python's types."""


def mistake(detail: ErrorDetails, at: Iterable[int | str]) -> str:
    """One mistake of a configuration in one line: the field, what came, what was expected, and what to do.

    Args:
        detail: What pydantic says.
        at: Where, from the top.
    """
    location = [str(part) for part in at]
    model = None
    if location[:1] == ["model"] and len(location) > 1 and location[1] in MODELS:
        model = location.pop(1)  # the union's tag, which is no key
    if location[:2] == ["scale", "workers"]:
        location[2:3] = []  # likewise
    key, kind = ".".join(location), detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(key, model)
    if kind == "union_tag_invalid":
        name = str(detail["ctx"]["tag"])
        return f"model.name={name!r} is no model{did_you_mean(name, MODELS)}; known: {', '.join(MODELS)}"
    if kind == "union_tag_not_found" or (kind == "missing" and key == "model"):
        return f"model.name is missing; one of {', '.join(MODELS)}"
    if kind in ("model_type", "model_attributes_type"):
        example = next(name for name in names_of_keys(None) if name.startswith(f"{key}."))
        return f"{key}={detail['input']!r}: {key} is a section; set keys in it, such as {example}"
    return wrong_value(key, detail)


def wrong_value(key: str, detail: ErrorDetails) -> str:
    """A mistake in what a key of any file of settings is set to.

    Args:
        key: Its name; empty where the mistake is in how several go together.
        detail: What pydantic says.
    """
    kind, came = detail["type"], detail["input"]
    section, _, last = key.rpartition(".")
    if kind == "missing":
        return f"{section}={came!r}: is too short" if last.isdigit() else f"{key} is missing; set it, too"
    if kind in _EXPECTED:
        return f"{key}={came!r}: expected {_EXPECTED[kind]}"
    if kind == "value_error":
        message = str(detail["ctx"]["error"])
        return message if not key or message.startswith(f"{key}.") else f"{key}: {message}"
    return f"{key}={came!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _unknown_key(key: str, model: str | None) -> str:
    name = key.rpartition(".")[2]
    owners = [other for other in MODELS if model and name in MODELS[other].Config.model_fields]
    if owners:
        return f"{key} is a key of model.name={' and '.join(owners)}, but not of model.name={model}; leave it out"
    near = _nearest(key, list(names_of_keys(model)))
    return f"{key} is not a known key; {f'did you mean {near}?' if near else '--help lists the known keys'}"


def _nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key that is most alike: the same name in another section, or else name and section, 2 to 1."""
    section, _, name = key.rpartition(".")

    def likeness(other: str) -> tuple[bool, float, int]:
        other_section, _, other_name = other.rpartition(".")
        both = 2 * _alike(name, other_name) + _alike(section, other_section)
        return name == other_name, both, -other.count(".")

    best = max(known, key=likeness)
    return best if _alike(name, best.rpartition(".")[2]) > 0.55 else None


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(a=one, b=other).ratio()
