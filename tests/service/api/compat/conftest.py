"""A service with the interfaces of other services switched on."""

from collections.abc import Iterator

import pytest

from tests.service.conftest import FaultyDetector, Live, serving


@pytest.fixture(scope="module")
def compat_service() -> Iterator[Live]:
    """Serve the faulty detector with every compatible interface."""
    with serving(lambda _: FaultyDetector(), deepstack=True, huggingface=True, open_inference=True) as live:
        yield live
