"""``/`` and the files of the page."""

from service.api.routes.web import FOLDER
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


def test_the_page_names_no_other_host() -> None:
    for path in [*FOLDER.glob("*.html"), *FOLDER.glob("*.css"), *FOLDER.rglob("*.js")]:
        text = path.read_text()
        assert "http://" not in text, path
        assert "https://" not in text, path
    assert sorted(path.name for path in (FOLDER / "examples").glob("*.jpg")) == ["camera.jpg", "chelsea.jpg"]
