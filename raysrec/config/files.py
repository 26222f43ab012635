"""YAML files and `key=value` as nested settings, of a configuration or a sweep, before they are checked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from pyarrow import fs

from raysrec.config.settings import nest, overlay
from raysrec.errors import LastingError, did_you_mean
from raysrec.place import AnyPath, Place


class ConfigError(LastingError):
    """A configuration that cannot be run; each line of the text is one thing to fix."""


class FileKind(NamedTuple):
    """What messages say of the files and settings of one kind."""

    option: str
    """Names such a file on the command line."""
    expected: str
    """What stands in one."""
    form: str
    """How a setting is written on the command line."""
    example: str
    prefix: str = ""
    """What its key begins with there."""


CONFIGURATION = FileKind("--config", "sections such as data: and model:", "section.key=value", "train.epochs=3")


def read(
    paths: Sequence[AnyPath], overrides: Sequence[str] = (), *, kind: FileKind = CONFIGURATION, between: Any = None
) -> dict[str, Any]:
    """Nested settings of files laid over each other, and of overrides on top; not checked.

    Args:
        paths: YAML files; a later one wins key by key.
        overrides: `key=value`, the value read as YAML, each key with the prefix of its kind.
        kind: Of what they are.
        between: Nested settings that lie over the files and under the overrides.

    Raises:
        ConfigError: A file is missing or no YAML, or an override is none.
    """
    settings: dict[str, Any] = {}
    for path in paths:
        settings = overlay(settings, _read_yaml(Place.of(path), kind))
    settings = overlay(settings, between or {})
    for override in overrides:
        settings = overlay(settings, _read_override(override, kind))
    return settings


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


def _read_yaml(path: Place, kind: FileKind) -> dict[str, Any]:
    there = path.info().type
    if there == fs.FileType.NotFound:
        beside = [info.base_name for info in path.at(path.path.rpartition("/")[0] or ".").below(recursive=False)]
        near = did_you_mean(path.name, [name for name in beside if name.endswith(".yaml")])
        raise ConfigError(f"{kind.option} {path}: there is no such file{near}")
    if there == fs.FileType.Directory:
        raise ConfigError(f"{kind.option} {path}: is a folder; name a YAML file in it")
    try:
        content = yaml.load(path.read_text(), _OncePerKey)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{kind.option} {path}: is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{kind.option} {path}: holds a {type(content).__name__}, expected {kind.expected}")
    return content


def _read_override(override: str, kind: FileKind) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no setting; write {kind.form}, for example {kind.example}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text  # an interval such as [5,inf) is no YAML, but it is a value
    return nest(key.removeprefix(kind.prefix), value)
