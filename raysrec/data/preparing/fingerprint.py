"""What a prepared data set is named by: a fingerprint of its source's bytes and of every rule that matters.

The same fingerprint means the same data, so whoever asks for it again can take what lies there.
"""

import hashlib
import json
from typing import Any

from raysrec.config import Columns, DataConfig, SplitConfig
from raysrec.data import synthetic
from raysrec.data.manifest import Source
from raysrec.data.sources.files import SourceFile, file_in_words
from raysrec.data.sources.formats import GENERIC, format_of, separator_of
from raysrec.data.sources.read import source_files
from raysrec.place import Place

VERSION = [1, 1]
"""Changes when other histories are made of the same source and rules, or written otherwise; part of every fingerprint.

What the manifest says of them is no part of it."""


def hash_source(config: DataConfig) -> Source:
    """Name, size and SHA-256 of the source as it lies on disk; of its settings for the embedded source.

    Raises:
        SourceError: There is no such file.
    """
    if format_of(config) == "synthetic":
        settings = f"{synthetic.VERSION} {synthetic.settings_json(config.synthetic)}"
        return Source(path="synthetic", bytes=0, sha256=hashlib.sha256(settings.encode()).hexdigest())
    sizes, digests = zip(*(_hash_file(file) for file in source_files(config)), strict=True)
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return Source(path=config.source, bytes=sum(sizes), sha256=whole)


def fingerprint_of(config: DataConfig, source: Source) -> str:
    """Sixteen hexadecimal digits over all that decides the prepared data: the source's bytes and the rules.

    The name of the data set, the place of the source and the layout of an epoch do not count.
    """
    intervals = config.user_interactions, config.item_interactions
    rules: dict[str, Any] = {
        "version": VERSION,
        "source": source.sha256,
        "format": (kind := format_of(config)),
        "intervals": [[interval.low, str(interval.high)] for interval in intervals],
    }
    if kind in GENERIC or config.columns != Columns():
        rules["columns"] = config.columns.model_dump()
    if kind == "csv":
        rules["separator"] = separator_of(config)
    if config.time_unit != "auto":
        rules["time_unit"] = config.time_unit
    if config.time_precision != "whole":
        rules["time_precision"] = config.time_precision
    if config.where:
        rules["where"] = config.where
    if config.split.name != "leave_one_out":
        rules["split"] = _what_counts(config.split)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def prepared_folder(config: DataConfig) -> Place:
    """Where the prepared data set that the config describes is kept, if it was made before.

    Raises:
        SourceError: There is no such source.
    """
    return Place.of(config.prepared) / fingerprint_of(config, hash_source(config))


def stamp_of(config: DataConfig) -> list[tuple[str, int, int, str]]:
    """Name, size, time of change (and a store's tag) of each file: other before and after reading, if written to.

    Raises:
        SourceError: There is no such file.
    """
    return [(file.path, *file.place.stamp()) for file in source_files(config)]


def _what_counts(split: SplitConfig) -> dict[str, Any]:
    """Moments count as seconds, however they are written, and shares where there are none."""
    if split.validate_from is None or split.test_from is None:
        return split.model_dump(include={"name", "target", "validation_share", "test_share"})
    moments = {"validate_from": split.validate_from.seconds, "test_from": split.test_from.seconds}
    return split.model_dump(include={"name", "target"}) | moments


def _hash_file(file: SourceFile) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with file_in_words(file), file.place.open() as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
