"""Problem documents: their members, headers and reason phrases."""

import json

from service.api.problems import problem_document, problem_response, reason_phrase
from service.errors import BadOption, QueueFull


def test_a_document_names_each_wrong_option():
    fields = [{"name": "classes", "problem": "unknown"}]
    assert problem_document(BadOption("classes: unknown.", fields=fields), "id-1") == {
        "type": "about:blank",
        "title": reason_phrase(422),
        "status": 422,
        "detail": "classes: unknown.",
        "code": "bad_option",
        "request_id": "id-1",
        "errors": fields,
    }


def test_a_response_has_the_headers_of_its_error_and_further_members():
    response = problem_response(QueueFull("Full.", retry_after=7), "id-1", lambda detail: {"error": detail})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert response.headers["content-type"] == "application/problem+json"
    body = json.loads(response.body)
    assert (body["error"], body["detail"]) == ("Full.", "Full.")
    assert "errors" not in body


def test_statuses_outside_the_standard_have_a_phrase():
    assert reason_phrase(404) == "Not Found"
    assert reason_phrase(499) == "Client Closed Request"
    assert reason_phrase(599) == "Error"


def test_a_document_is_bounded_and_can_be_written_whatever_words_of_a_client_it_repeats():
    words = "\ud800\0\n" + "é" * 100_000
    error = BadOption(f"{words}: unknown.", fields=[{"name": words, "problem": "unknown"}])
    response = problem_response(error, "id-1", lambda detail: {"error": detail})
    assert len(response.body) < 40_000
    assert json.loads(response.body)["errors"][0]["name"].startswith("?\0\n")
