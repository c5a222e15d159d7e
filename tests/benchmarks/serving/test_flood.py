"""The flood of requests: what is read of a response, and the rate of answers that come in batches."""

import pytest

from benchmarks.serving.flood import _value, answer_rate


def test_the_rate_is_that_of_whole_batches():
    answered = [
        batch + answer / 1000 for batch in range(20) for answer in range(8)
    ]  # 8 at the beginning of each second
    for begin, end in ((3.5, 9.5), (3.9, 10.2)):
        assert answer_rate(answered, begin, end) == pytest.approx(8, rel=0.01)
    assert answer_rate(answered, 18.5, 30) == 0.0
    assert answer_rate([], 0, 1) == 0.0


def test_a_header_is_found_by_its_whole_name():
    head = b"http/1.1 429 \r\nx-retry-after: 5\r\nretry-after: 2\r\ncontent-length: 10"
    assert _value(head, b"retry-after") == b"2"
    assert _value(head, b"content-length") == b"10"
    assert _value(head, b"connection") is None
