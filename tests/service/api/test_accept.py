"""Which type of response a client prefers."""


def test_json_is_what_a_browser_or_curl_gets(service, cat_jpeg):
    for accept in (
        "*/*",
        "text/html,application/json;q=0.9,*/*;q=0.8",
        "image/png;q=0.5, application/json",
        "nonsense",
    ):
        assert service.detect(cat_jpeg, headers={"Accept": accept}).headers["content-type"] == "application/json"
