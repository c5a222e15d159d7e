"""A service with every other interface switched on."""

from collections.abc import Iterator

import pytest

from tests.service.conftest import FaultyDetector, Live, serving


@pytest.fixture(scope="module")
def speaking() -> Iterator[Live]:
    with serving(lambda _: FaultyDetector(), deepstack=True, huggingface=True, open_inference=True) as live:
        yield live
