"""Errors of the framework become problems."""

from tests.service.exchange import check_problem


def test_unknown_routes_and_methods_are_problems(service):
    check_problem(service.client.get("/etc/passwd"), 404, "/docs")
    check_problem(service.client.get("/detect"), 405, "/docs")
