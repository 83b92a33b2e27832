"""Lists of names in messages."""

import warnings

from kerasmtl.utils.text import listed, warn


def test_few_names_are_listed_whole():
    assert listed(["a", 2]) == "a, 2" and listed([]) == ""


def test_a_warning_is_at_the_line_of_the_caller():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn("careful")
    assert seen[0].filename == __file__ and str(seen[0].message) == "careful"
