import random
from itertools import islice

import pytest

from benchmarks.lib.mutations import mutated_files, originals, structure
from service.images.decoding import decode_image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_originals_are_valid_and_have_a_known_structure(format: str) -> None:
    for data in originals()[format]:
        decode_image(data, max_pixels=10_000)
        spans, numbers = structure(data, format)
        assert all(0 <= start <= end <= len(data) for start, end in spans)
        assert numbers


def test_a_seed_gives_the_same_files_again() -> None:
    first, second = (list(islice(mutated_files(random.Random(7)), 200)) for _ in range(2))
    assert first == second
    assert {format for format, _ in first} == set(originals())
