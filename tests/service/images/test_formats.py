"""The formats are known by their first bytes."""

import pytest

from service.images.formats import sniff_format
from tests.service import corpus


@pytest.mark.parametrize("format", corpus.FORMATS)
def test_each_format_is_known_by_its_content(format):
    assert sniff_format(corpus.intact(format)) == format


@pytest.mark.parametrize("data", [b"", b"BM is how this text begins", b"RIFF\0\0\0\0WAVE", b"%PDF-1.7", b"\xff\xd8"])
def test_anything_else_is_no_image(data):
    assert sniff_format(data) is None
