import hashlib

import pytest

from raysrec.config import DataConfig
from raysrec.data.manifest import Source
from raysrec.data.preparing.fingerprint import fingerprint_of, hash_source, stamp_of
from raysrec.data.sources.files import SourceError

SOURCE = Source(path="a", bytes=1, sha256="0" * 64)
FINGERPRINTS = ["45fcdcf1800f02cb", "8d26714be5b276fc", "03f96073295cc8ba", "6eb87febdeb0ea87"]


@pytest.fixture
def config(tmp_path):
    """A config of a source with this content, and with further settings."""

    def make(content=b"content", file="a.inter", **settings):
        path = tmp_path / file
        path.write_bytes(content)
        loose = {"user_interactions": "[3,inf)", "item_interactions": "[1,inf)"}
        return DataConfig.model_validate({"source": str(path)} | loose | settings)

    return make


def fingerprint(config):
    return fingerprint_of(config, hash_source(config))


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, True),
        ({"name": "another"}, True),
        ({"num_streams": 2}, True),
        ({"format": "recbole"}, True),
        ({"user_interactions": "[3, inf)"}, True),
        ({"user_interactions": "[4,inf)"}, False),
        ({"item_interactions": "[1,99]"}, False),
    ],
)
def test_the_fingerprint_changes_with_what_matters(config, settings, same):
    assert (fingerprint(config()) == fingerprint(config(**settings))) == same


def test_the_fingerprint_changes_with_the_source(config):
    first = fingerprint(config(b"one"))
    assert fingerprint(config(b"two")) != first
    assert fingerprint(config(b"one")) == first


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(config):
    assert fingerprint(config(file="a.inter")) == fingerprint(config(file="b.inter"))


def test_columns_and_separator_count_where_the_format_has_them(config):
    others = {"columns": {"user": "u"}}, {"separator": ";"}
    assert all(fingerprint(config(file="a.csv", **other)) != fingerprint(config(file="a.csv")) for other in others)
    assert fingerprint(config(columns={"item": "artists_id"})) != fingerprint(config())
    assert fingerprint(config(separator=";")) == fingerprint(config())


def test_conditions_and_the_unit_of_time_count():
    plain = fingerprint_of(DataConfig(format="csv", source="a.csv"), SOURCE)
    for other in ({"where": {"kind": "buy"}}, {"time_unit": "ms"}, {"time_precision": "float32"}):
        assert fingerprint_of(DataConfig(format="csv", source="a.csv", **other), SOURCE) != plain


def test_the_split_counts_but_not_how_its_moments_are_written():
    def of(**split):
        return fingerprint_of(DataConfig(format="csv", source="a.csv", split=split), SOURCE)

    shares = {"name": "temporal"}
    moments = shares | {"validate_from": "2005-09-06", "test_from": "2005-09-07"}
    others = [
        shares,
        shares | {"test_share": 0.2},
        shares | {"target": "first"},
        moments,
        moments | {"test_from": 2**40},
    ]
    assert len({of(), *(of(**other) for other in others)}) == 6
    assert of(name="leave_one_out") == of()
    assert of(**moments) == of(**shares, validate_from=1125964800, test_from="2005-09-07 00:00:00")


def test_a_fingerprint_stays_what_it_was():
    """Prepared data of an earlier version are found again."""
    config = {"user_interactions": "[5,inf)", "item_interactions": "[5,inf)"}
    names = {"a.inter": "recbole", "ratings.dat": "movielens", "a.csv": "csv", "a.parquet": "parquet"}
    found = [
        fingerprint_of(DataConfig(source=name, format=kind, **config), SOURCE)  # the files need not be there
        for name, kind in names.items()
    ]
    assert found == FINGERPRINTS


def test_a_source_is_hashed_as_it_lies_on_disk(config, tmp_path):
    source = hash_source(config(b"content"))
    assert (source.bytes, source.sha256) == (7, hashlib.sha256(b"content").hexdigest())
    for name in ("b.parquet", "a.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    whole = "\n".join(hashlib.sha256(name).hexdigest() for name in (b"a.parquet", b"b.parquet"))
    source = hash_source(DataConfig(source=str(tmp_path)))
    assert (source.bytes, source.sha256) == (18, hashlib.sha256(whole.encode()).hexdigest())


def test_the_stamp_tells_that_a_source_was_written_to(config):
    before = stamp_of(config(b"one"))
    assert stamp_of(config(b"more")) != before


def test_a_source_that_is_not_there_has_no_hash(tmp_path):
    with pytest.raises(SourceError, match="there is no such file"):
        hash_source(DataConfig(source=str(tmp_path / "none.inter")))
