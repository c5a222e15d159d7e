"""Which type of response a client prefers."""

import time

import pytest

from service.api.accept import preferred_image_type


def test_browsers_and_curl_get_json(service, cat_jpeg):
    for accept in (
        "*/*",
        "text/html,application/json;q=0.9,*/*;q=0.8",
        "image/png;q=0.5, application/json",
        "nonsense",
    ):
        assert service.detect(cat_jpeg, headers={"Accept": accept}).headers["content-type"] == "application/json"


@pytest.mark.parametrize("quality", ["inf", "nan", "-1", "2", "x", ""])
def test_a_quality_that_is_none_counts_as_zero(quality):
    assert preferred_image_type(f"image/png;q={quality}, application/json;q=0.1") is None
    assert preferred_image_type(f"image/png;q={quality}, image/jpeg;q=0.1") == "image/jpeg"


@pytest.mark.parametrize("unit", [",", ";", ";q=1", "image/png,", "*/*;q=0.1;"])
def test_a_long_header_costs_little(unit):
    started = time.thread_time()
    preferred_image_type(unit * (2**20 // len(unit)))
    assert time.thread_time() - started < 0.5
