"""Whole numbers in headers."""

import pytest

from service.api.numbers import whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("17", 17),
        ("0" * 5000 + "17", 17),
        ("100", 100),
        ("101", 100),
        ("9" * 5000, 100),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("1_0", None),
        (" 1", None),
        ("\u00b2", None),
        ("\u0661", None),
    ],
)
def test_a_number_is_read_up_to_a_maximum_however_long_it_is(text, number):
    assert whole_number(text, 100) == number
