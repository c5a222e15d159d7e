"""``create_app``: which routes there are, and what the OpenAPI document says of them."""

import json
import re


def test_compatible_interfaces_are_404_unless_switched_on(serve_faulty, encoded) -> None:
    with serve_faulty() as live:
        for path in ("/v1/vision/detection", "/huggingface/object-detection", "/v2/models/fake/infer"):
            assert live.client.post(path, content=encoded()).status_code == 404


def test_openapi_describes_bodies_responses_and_problems(service):
    document = service.client.get("/openapi.json").json()
    assert set(document["paths"]) >= {
        "/detect",
        "/detect/batch",
        "/proposals",
        "/model",
        "/livez",
        "/readyz",
        "/metrics",
    }
    detect = document["paths"]["/detect"]["post"]
    assert set(detect["requestBody"]["content"]) == {"image/*", "multipart/form-data", "application/json"}
    assert "score_threshold" in detect["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(detect["responses"]["200"]["content"]) == {"application/json", "image/jpeg", "image/png"}
    for status in ("400", "401", "413", "415", "422", "429", "500", "503", "504"):
        assert set(detect["responses"][status]["content"]) == {"application/problem+json"}
    assert {"score_threshold", "classes", "X-Request-Timeout-Ms"} <= {p["name"] for p in detect["parameters"]}
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
