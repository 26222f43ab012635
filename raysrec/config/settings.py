"""Nested settings, before they are checked: the one way in which they are laid over each other, and compared."""

from collections.abc import Mapping
from typing import Any


def nest(key: str, value: object) -> dict[str, Any]:
    """`nest("a.b", 1)` is `{"a": {"b": 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted key: `flat({"a": {"b": 1}})` is `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the settings of `above` laid over it, section by section; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object, object]]:
    """(key, old value, new value) of every setting that differs; a missing one is None."""
    found: list[tuple[str, object, object]] = []
    for name in dict.fromkeys([*old, *new]):
        key, a, b = f"{prefix}{name}", old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{key}.")
        elif a != b:
            found.append((key, a, b))
    return found
