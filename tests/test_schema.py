import datetime
import math
import pkgutil
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

import raysrec
from raysrec.schema import (
    Count,
    CountOrZero,
    Decay,
    Interval,
    Moment,
    NonNegative,
    Positive,
    Probability,
    Section,
    date_of,
)


class Shop(Section):
    """A section to try."""

    name: str = "corner"
    """What it is called."""
    opens: Interval = Interval("[8,18)")
    """Hours."""


class Bakery(Shop):
    """A section that narrows another's field."""

    name: str = "bakery"
    ovens: Count = 1
    """How many."""


def sections_of_raysrec():
    for module in pkgutil.walk_packages(raysrec.__path__, "raysrec."):
        if not module.name.rpartition(".")[2].startswith("_"):
            import_module(module.name)
    return [section for section in every_subclass(Section) if section.__module__.startswith("raysrec.")]


def every_subclass(parent):
    for child in parent.__subclasses__():
        yield child
        yield from every_subclass(child)


def test_every_field_of_every_section_has_a_docstring():
    fields = {f"{s.__name__}.{name}": field for s in sections_of_raysrec() for name, field in s.model_fields.items()}
    assert len(fields) > 50
    assert [name for name, field in fields.items() if not field.description] == []


def test_every_docstring_of_a_field_is_a_sentence():
    for section in sections_of_raysrec():
        for name, field in section.model_fields.items():
            assert field.description.endswith("."), f"{section.__name__}.{name}"


def test_a_field_that_narrows_its_parents_keeps_its_docstring():
    assert Bakery.model_fields["name"].description == "What it is called."
    assert Bakery.model_fields["ovens"].description == "How many."


def test_a_section_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Shop().name = "other"


def test_a_section_refuses_unknown_keys_and_bad_defaults():
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Shop(nmae="typo")

    class Wrong(Section):
        number: Count = 0

    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Wrong()


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Count, [1, 7], [0, -1, 1.5, "many"]),
        (CountOrZero, [0, 7], [-1, 0.5]),
        (Positive, [1e-9, 3], [0, -1.0, math.inf, math.nan]),
        (NonNegative, [0, 2.5], [-1e-9, math.inf, math.nan]),
        (Probability, [0, 0.99], [1, -0.1, math.nan]),
        (Decay, [0, 0.999], [1, -0.1, math.nan]),
    ],
    ids=["Count", "CountOrZero", "Positive", "NonNegative", "Probability", "Decay"],
)
def test_constrained_numbers_take_what_they_say(kind, good, bad):
    adapter = TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in good] == good
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("[5,inf)", 5, math.inf),
        ("[50,15000]", 50, 15000),
        ("(4,10)", 5, 9),
        ("(4,10]", 5, 10),
        ("[3,3]", 3, 3),
        ("[0,0]", 0, 0),
        ("  [ 5 , inf ]  ", 5, math.inf),
    ],
)
def test_brackets_decide_whether_ends_belong(text, low, high):
    interval = Shop(opens=text).opens
    assert (interval.low, interval.high) == (low, high)


@given(low=st.integers(0, 10**6), width=st.integers(0, 10**6))
def test_a_list_of_two_numbers_is_the_interval_it_looks_like(low, width):
    assert Shop(opens=[low, low + width]).opens == f"[{low},{low + width}]"


@pytest.mark.parametrize(
    "text", ["", "5", "5,inf", "[5;inf)", "[-1,5]", "[5,inf", "[1.5,2]", "[inf,inf]", [1, 2, 3], 7, None]
)
def test_what_is_no_interval_is_refused_with_an_example(text):
    with pytest.raises(ValidationError, match=r"is no interval; write for example \[5,inf\) or \[50,15000\]"):
        Shop(opens=text)


@pytest.mark.parametrize("text", ["[9,5]", "(5,5]", "[5,5)", "(4,5)"])
def test_an_empty_interval_is_refused(text):
    with pytest.raises(ValidationError, match="is an empty interval; its lower end lies above its upper end"):
        Shop(opens=text)


@pytest.mark.parametrize("text", ["[5,inf)", "(4,10]", "[3,3]"])
def test_an_interval_survives_json(text):
    shop = Shop(opens=text)
    again = Shop.model_validate_json(shop.model_dump_json())
    assert again == shop
    assert isinstance(again.opens, Interval)


MOMENTS = TypeAdapter(Moment)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2005-09-06", 1125964800),
        ("2005-09-06 12:30:00", 1126009800),
        ("2005-09-06T12:30:00+02:00", 1126002600),
        ("1925-01-01", -1420070400),
        (datetime.date(2005, 9, 6), 1125964800),
        (datetime.datetime(2005, 9, 6, 12, 30), 1126009800),
        (1125964800, 1125964800),
        ("-7", -7),
    ],
)
def test_a_moment_is_a_date_or_seconds(written, seconds):
    moment = MOMENTS.validate_python(written)
    assert moment.seconds == seconds
    assert MOMENTS.validate_json(MOMENTS.dump_json(moment)) == moment


@pytest.mark.parametrize("written", ["soon", "2005-13-01", "", 1.5, True, None, 2**63, "2005-09-06 12:30:00.5", [2005]])
def test_what_is_no_moment_is_refused(written):
    with pytest.raises(ValidationError, match="is no moment; write a date such as 2005-09-06"):
        MOMENTS.validate_python(written)


def test_seconds_are_shown_as_dates_where_a_calendar_reaches():
    assert date_of(1125964800) == "2005-09-06 00:00:00"
    assert date_of(-1) == "1969-12-31 23:59:59"
    assert date_of(2**62) == str(2**62)
