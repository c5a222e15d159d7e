"""``/docs``."""

import re


def test_the_documentation_needs_no_other_host(service):
    answer = service.client.get("/docs")
    assert answer.status_code == 200
    assert "/detect/batch" in answer.text
    assert "score_threshold" in answer.text
    assert "curl" in answer.text
    for source in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
        assert not source.startswith(("http", "//"))
        assert service.client.get("/" + source).status_code == 200
    assert "<script" not in answer.text
