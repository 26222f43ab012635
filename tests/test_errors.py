import pytest

from raysrec.data.prepared import PreparedDataError
from raysrec.errors import LastingError, ReadableError, readable
from raysrec.place import PlaceError


class Wrapper(Exception):
    def __init__(self, text, **attributes):
        super().__init__(text)
        vars(self).update(attributes)


SAID = PreparedDataError("a.parquet: row group 3 is damaged")


def chained():
    error = Wrapper("outer")
    error.__cause__ = Wrapper("middle", cause=SAID)
    return error


@pytest.mark.parametrize(
    "error",
    [
        SAID,
        chained(),
        Wrapper("two workers failed", worker_failures={0: Wrapper("lost a peer"), 1: chained()}),
        Wrapper(f"Traceback …\nraysrec.data.prepared.PreparedDataError: {SAID}\n"),
        Wrapper("", worker_failures={1: Wrapper(f"raysrec.stores.PlaceError: before\n\n…PreparedDataError: {SAID}")}),
    ],
    ids=["itself", "cause", "workers", "text", "last in the text"],
)
def test_what_is_readable_is_found_in_what_wraps_it(error):
    found = readable(error)
    assert type(found) is PreparedDataError
    assert str(found) == str(SAID)


@pytest.mark.parametrize("error", [ValueError("no"), Wrapper("SomePlaceErrors: no"), Wrapper("", worker_failures=3)])
def test_other_errors_are_left_alone(error):
    assert readable(error) is None


def test_what_ray_data_adds_to_a_text_is_taken_off():
    said = PreparedDataError(
        f"{SAID}\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts …"
    )
    assert str(readable(Wrapper("outer", cause=said))) == str(SAID)


def test_damage_lasts_and_a_store_may_recover():
    assert isinstance(SAID, LastingError)
    assert isinstance(PlaceError("down"), ReadableError)
    assert not isinstance(PlaceError("down"), LastingError)
