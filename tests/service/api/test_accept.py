"""Which type of response a client prefers."""


def test_browsers_and_curl_get_json(service, cat_jpeg):
    for accept in (
        "*/*",
        "text/html,application/json;q=0.9,*/*;q=0.8",
        "image/png;q=0.5, application/json",
        "nonsense",
    ):
        assert service.detect(cat_jpeg, headers={"Accept": accept}).headers["content-type"] == "application/json"
