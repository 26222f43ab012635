"""From the command line to one RunConfig: files laid over each other, `key=value` on top, errors in words.

Every verb reads its arguments here, so that `--config`, overrides, `--help` and the wording of an error are the
same everywhere. `nest` and `overlay` are the one way in which a setting is changed; sweeps and tests use them too.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import yaml
from pyarrow import fs
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from raysrec.config.run import RunConfig
from raysrec.errors import LastingError
from raysrec.models import MODELS
from raysrec.place import AnyPath, Place
from raysrec.schema import Section
from raysrec.stopping import INTERRUPTED, ends_when_terminated


class ConfigError(LastingError):
    """A configuration that cannot be run; each line of the text is one thing to mend."""


def load(paths: Sequence[AnyPath], overrides: Sequence[str] = ()) -> RunConfig:
    """Lay the files over each other in order, then the overrides, and check the result.

    Args:
        paths: YAML files, here or in a store; a later one wins key by key.
        overrides: `section.key=value`, the value read as YAML.

    Raises:
        ConfigError: A file is missing or no YAML, a key is unknown, a value is wrong, or a combination impossible.
    """
    return validate(read(paths, overrides))


def read(
    paths: Sequence[AnyPath], overrides: Sequence[str] = (), *, option: str = "--config", between: Any = None
) -> dict[str, Any]:
    """The nested settings that `load` checks.

    Args:
        paths: YAML files; a later one wins key by key.
        overrides: `section.key=value`, the value read as YAML.
        option: Which one named the files, for messages.
        between: Nested settings that lie over the files and under the overrides.

    Raises:
        ConfigError: A file is missing or no YAML, or an override is none.
    """
    settings: dict[str, Any] = {}
    for path in paths:
        settings = overlay(settings, _read_yaml(Place.of(path), option))
    settings = overlay(settings, between or {})
    for override in overrides:
        settings = overlay(settings, _read_override(override))
    return settings


def validate(settings: Mapping[str, Any]) -> RunConfig:
    """A RunConfig of nested settings, or a ConfigError with one line per mistake."""
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_in_words(detail) for detail in error.errors())) from None


def nest(key: str, value: object) -> dict[str, Any]:
    """`nest("a.b", 1)` is `{"a": {"b": 1}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


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


def run_verb(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> NoReturn:
    """Run a verb; what its user can mend is printed as one message without a traceback, with exit code 2.

    Ended by SIGTERM, at whatever point, it exits with `STOPPED`; by Ctrl-C, with `INTERRUPTED`.
    """
    try:
        with ends_when_terminated():
            main(parser.parse_intermixed_args())  # options and settings in any order
    except (ValueError, OSError) as error:
        if isinstance(error, ValidationError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)


def config_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser with `--config` and `key=value`, whose help lists every key of the schema."""
    parser = argparse.ArgumentParser(
        prog=f"python -m raysrec.{verb}",
        description=description,
        epilog=help_of_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="FILE",
        help="YAML settings, here or in a store; may be given several times, a later file lies over an earlier one",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the files")
    return parser


def help_of_keys() -> str:
    """Every key with its default and meaning, as the schema states them."""
    lines = ["keys:"]
    lines += describe_keys(RunConfig)
    for name, model in MODELS.items():
        lines += ["", f"keys of model.name={name}:", *describe_keys(model.Config, "model.")]
    return "\n".join(lines)


def describe_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Lines of help: the keys of a section and of those in it, with their defaults and meanings."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from describe_keys(field.annotation, f"{prefix}{name}.")
        elif prefix or name != "model":
            default = "required" if field.default is PydanticUndefined else field.default
            shown = default if str(default) else "''"
            yield f"  {prefix}{name} ({shown})\n      {' '.join((field.description or '').split())}"


class _OncePerKey(yaml.SafeLoader):
    """Refuses a key that stands twice in a section; YAML would keep the last and lose the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A section."""
        met = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in met:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            met.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Place, option: str) -> dict[str, Any]:
    kind = path.info().type
    if kind == fs.FileType.NotFound:
        beside = [info.base_name for info in path.at(path.path.rpartition("/")[0] or ".").below(recursive=False)]
        near = difflib.get_close_matches(path.name, [name for name in beside if name.endswith(".yaml")], 1)
        raise ConfigError(f"{option} {path}: there is no such file" + (f"; did you mean {near[0]}?" if near else ""))
    if kind == fs.FileType.Directory:
        raise ConfigError(f"{option} {path}: is a folder; name a YAML file in it")
    try:
        content = yaml.load(path.read_text(), _OncePerKey)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path}: is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{option} {path}: holds a {type(content).__name__}, expected sections such as data: and model:"
        )
    return content


def _read_override(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting; write section.key=value, for example train.epochs=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text  # an interval such as [5,inf) is no YAML, but it is a value
    return nest(key, value)


_EXPECTED = {"string_type": "text; put it in quotes", "tuple_type": "a list, such as [1, 2]"}
"""What pydantic would say in terms of Python's types."""


def _in_words(detail: Any) -> str:
    """One mistake in one line: the field, what came, what was expected, and what to do."""
    location = [str(part) for part in detail["loc"]]
    model = None
    if location[:1] == ["model"] and len(location) > 1 and location[1] in MODELS:
        model = location.pop(1)  # the union's tag, which is no key
    if location[:2] == ["scale", "workers"]:
        location[2:3] = []  # likewise
    key, kind, came = ".".join(location), detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown_key(key, model)
    if kind == "union_tag_invalid":
        names = list(MODELS)
        near = difflib.get_close_matches(str(detail["ctx"]["tag"]), names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"model.name={detail['ctx']['tag']!r} is no model; {hint}known: {', '.join(names)}"
    if kind == "union_tag_not_found" or (kind == "missing" and key == "model"):
        return f"model.name is missing; one of {', '.join(MODELS)}"
    if kind in ("model_type", "model_attributes_type"):
        example = next(name for name in _known_keys(None) if name.startswith(f"{key}."))
        return f"{key}={came!r}: {key} is a section; set keys in it, such as {example}"
    if kind == "missing" and not location[-1].isdigit():
        return f"{key} is missing; set it, too"
    if kind == "missing":
        return f"{'.'.join(location[:-1])}={came!r}: is too short"
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
    near = _nearest(key, list(_known_keys(model)))
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


def _known_keys(model: str | None) -> Iterator[str]:
    """Sections, their keys, and the keys of one model; of all models where it is not known which is meant."""
    yield from RunConfig.model_fields
    described = [*describe_keys(RunConfig)]
    for name in [model] if model else MODELS:
        described += describe_keys(MODELS[name].Config, "model.")
    yield from (line.split()[0] for line in described)
