"""Failures of the framework come as problems too."""

from tests.service.exchange import refused


def test_routes_and_methods_that_are_not_there_are_problems_too(service):
    refused(service.client.get("/etc/passwd"), 404, "/docs")
    refused(service.client.get("/detect"), 405, "/docs")
