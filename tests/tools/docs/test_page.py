"""Pages are filled between their markers, and nothing else of them changes."""

import pytest

from tools.docs.page import fill_sections, markdown_table

PAGE = "Before.\n<!-- made: first -->\nold\n<!-- end -->\nBetween.\n<!-- made: second -->\n<!-- end -->\nAfter.\n"


def test_only_the_named_sections_are_replaced() -> None:
    filled = fill_sections(PAGE, {"first": "a \\1\n", "second": "b\n"})
    assert filled == PAGE.replace("old\n", "a \\1\n").replace("second -->\n", "second -->\nb\n")
    assert fill_sections(filled, {"first": "a \\1\n"}) == filled


@pytest.mark.parametrize("page", [PAGE + PAGE, PAGE.replace("made: first", "made: other")])
def test_a_section_that_is_missing_or_repeated_is_an_error(page: str) -> None:
    with pytest.raises(ValueError, match="'first'"):
        fill_sections(page, {"first": ""})


def test_a_table_escapes_bars_and_aligns_numbers() -> None:
    assert markdown_table(("a", "b"), [("x|y", "1")], numeric=True) == "| a | b |\n| --- | ---: |\n| x/y | 1 |\n"
