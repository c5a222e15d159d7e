"""The fixtures of the service's tests that integration tests use too."""

from tests.service.conftest import encoded

__all__ = ["encoded"]
