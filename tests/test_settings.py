import copy

from hypothesis import given
from hypothesis import strategies as st

from raysrec.config.settings import differences, flat, nest, overlay

keys = st.sampled_from("abc")
values = st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=2)
# One shape: at each place there is always a section or never one. Upper-case keys hold sections.
settings = st.recursive(
    st.dictionaries(keys, values, max_size=3),
    lambda inner: st.builds(
        lambda leaves, sections: leaves | sections,
        st.dictionaries(keys, values, max_size=2),
        st.dictionaries(st.sampled_from("AB"), inner, max_size=2),
    ),
    max_leaves=6,
)


@given(a=settings, b=settings, c=settings)
def test_overlay_is_associative(a, b, c):
    assert overlay(a, overlay(b, c)) == overlay(overlay(a, b), c)


@given(a=settings)
def test_overlay_of_nothing_and_of_itself_changes_nothing(a):
    assert overlay(a, {}) == overlay({}, a) == overlay(a, a) == a


@given(a=settings, b=settings)
def test_overlay_mutates_nothing(a, b):
    before = copy.deepcopy((a, b))
    overlay(a, b)
    assert (a, b) == before


@given(a=settings, b=settings)
def test_what_lies_above_wins_and_what_lies_below_stays(a, b):
    merged = overlay(a, b)
    assert overlay(merged, b) == merged
    assert set(merged) == set(a) | set(b)
    assert all(merged[key] == a[key] for key in set(a) - set(b))


def test_a_list_is_replaced_and_not_extended():
    assert overlay({"ks": [5, 10]}, {"ks": [20]}) == {"ks": [20]}


@given(parts=st.lists(st.text("abc_", min_size=1), min_size=1, max_size=4), value=values)
def test_nest_wraps_a_value_once_for_each_part_of_its_key(parts, value):
    nested = nest(".".join(parts), value)
    for part in parts:
        assert list(nested) == [part]
        nested = nested[part]
    assert nested == value


@given(a=settings, b=settings)
def test_differences_are_none_only_between_equals(a, b):
    assert (differences(a, b) == []) == (a == b)


def test_differences_name_the_full_key_and_both_values():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(old, new) == [("a.c", 2, 5), ("d", 3, None), ("e", None, 4)]


def test_flat_settings_nest_again():
    settings = {"model": {"name": "sasrec", "dim": 64}, "data": {"columns": {"user": "u"}, "ks": [1, 2]}}
    assert flat(settings) == {"model.name": "sasrec", "model.dim": 64, "data.columns.user": "u", "data.ks": [1, 2]}
    again = {}
    for key, value in flat(settings).items():
        again = overlay(again, nest(key, value))
    assert again == settings
