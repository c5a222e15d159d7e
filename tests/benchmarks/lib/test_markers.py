import pytest

from benchmarks.lib import markers

TEXT = "Mine.\n<!-- made: one -->\nold\nlines\n<!-- end -->\nMine too.\n<!-- made: two -->\n<!-- end -->\n"


def test_what_stands_between_markers_is_replaced_and_nothing_else() -> None:
    filled = markers.fill_all(TEXT, {"one": "new \\1\n", "two": "2\n"})
    assert filled == (
        "Mine.\n<!-- made: one -->\nnew \\1\n<!-- end -->\nMine too.\n<!-- made: two -->\n2\n<!-- end -->\n"
    )
    assert markers.fill_all(filled, {"one": "new \\1\n", "two": "2\n"}) == filled


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("<!-- made: two -->", ""),
        TEXT + TEXT,
        TEXT + "<!-- made: three -->\n<!-- end -->\n",
        TEXT.replace("lines\n<!-- end -->", "lines"),
    ],
)
def test_markers_that_are_missing_or_repeated_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="marker"):
        markers.fill_all(text, {"one": "1", "two": "2"})
