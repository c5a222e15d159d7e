"""``/`` and the files of the page."""

import pytest

from service.api.routes.web import FOLDER, Files
from tests.service.conftest import Live


def test_the_page_and_its_files_carry_their_headers(service: Live) -> None:
    page = service.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    for path, kind in (("style.css", "text/css"), ("js/app.js", "javascript"), ("examples/chelsea.jpg", "image/jpeg")):
        response = service.client.get(f"/web/{path}")
        assert kind in response.headers["content-type"]
        assert response.headers["cache-control"] == "no-cache"
    assert service.client.get("/web/../app.py").status_code == 404
    assert service.client.get("/web/nothing.js").status_code == 404


def test_a_range_is_ignored_and_a_malformed_one_is_no_error(service: Live) -> None:
    for path in ("/", "/web/style.css"):
        for text in ("bytes=0-1", "bytes=5-1", "bytes=-", "bytes=" + "9" * 5000 + "-", "lines=1"):
            response = service.client.get(path, headers={"Range": text})
            assert (response.status_code, response.headers["accept-ranges"]) == (200, "none")
        tag = {"If-None-Match": response.headers["etag"]}
    assert service.client.get(path, headers=tag).status_code == 304


def test_a_path_longer_than_any_files_is_not_looked_up(service: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Files, "lookup_path", lambda *_: pytest.fail("it was looked up"))
    assert service.client.get("/web/" + "a/" * 5000).status_code == 404


def test_the_page_names_no_other_host() -> None:
    for path in [*FOLDER.glob("*.html"), *FOLDER.glob("*.css"), *FOLDER.rglob("*.js")]:
        text = path.read_text()
        assert "http://" not in text, path
        assert "https://" not in text, path
    assert sorted(path.name for path in (FOLDER / "examples").glob("*.jpg")) == ["camera.jpg", "chelsea.jpg"]
