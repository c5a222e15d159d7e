"""The fixtures of the service's tests that integration tests use too."""

from tests.service.conftest import _pillow_as_served, cat_jpeg, encoded, next_request_is_served, service

__all__ = ["_pillow_as_served", "cat_jpeg", "encoded", "next_request_is_served", "service"]
