"""``/docs``."""

import re


def test_the_documentation_needs_no_other_host(service):
    response = service.client.get("/docs")
    assert response.status_code == 200
    assert "/detect/batch" in response.text
    assert "score_threshold" in response.text
    assert "curl" in response.text
    for source in re.findall(r'(?:src|href)="([^"]+)"', response.text):
        assert not source.startswith(("http", "//"))
        assert service.client.get("/" + source).status_code == 200
    assert "<script" not in response.text
