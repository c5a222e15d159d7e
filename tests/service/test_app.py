"""What surrounds detection: health, the model, metrics, documentation, keys, headers, the log."""

import json
import logging
import re

import pytest

from service.server.logging import JsonFormatter, TextFormatter
from service.settings import SettingsError


def test_it_is_alive_and_ready(service):
    assert service.client.get("/livez").json() == {"status": "alive"}
    assert service.client.get("/readyz").json() == {"status": "ready"}


def test_the_model_says_what_it_is(service):
    model = service.client.get("/model").json()
    assert model["preset"] == "LITE"
    assert model["classes"] == ["__background__", "cat", "dog", "person"]
    assert model["parameters"] > 1_000_000
    assert model["limits"]["max_pixels"] == 4_000_000
    assert model["defaults"]["max_detections"] >= 1
    assert isinstance(model["defaults"]["max_detections"], int)
    assert model["anchors"][0]["stride"] == 8
    assert all(len(canvas) == 2 for canvas in model["canvases"])


def test_every_metric_of_the_contract_is_there_and_counts(service, cat_jpeg):
    before = service.metric("frcnn_requests_total", route="/detect", status="200")
    service.detect(cat_jpeg)
    service.detect(b"no picture")
    text = service.client.get("/metrics").text
    assert service.metric("frcnn_requests_total", route="/detect", status="200") == before + 1
    for line in (
        r'frcnn_requests_total{route="/detect",status="415"} \d',
        r'frcnn_request_seconds_count{route="/detect"} \d',
        *(
            rf'frcnn_stage_seconds_count{{stage="{stage}"}} \d'
            for stage in ("decode", "queue", "transform", "backbone", "rpn", "roi_head", "postprocess", "serialize")
        ),
        r"frcnn_batch_size_count \d",
        r"frcnn_canvas_padding_ratio_count \d",
        r"frcnn_queue_depth 0",
        r"frcnn_inflight 1",
        r'frcnn_rejected_total{reason="unsupported_image"} \d',
        r"# TYPE frcnn_batch_failures_total counter",
        r"frcnn_detections_per_image_count \d",
        r"frcnn_proposals_per_image_count \d",
        r'frcnn_device_memory_bytes{device="cpu"} \d',
        r"frcnn_ready 1",
        r'frcnn_model_info{.*preset="LITE".*} 1',
    ):
        assert re.search(rf"^{line}", text, re.MULTILINE), line


def test_a_stranger_cannot_make_time_series(service):
    for path in ("/a", "/b", "/c?d=e"):
        service.client.get(path)
    assert 'route="/a"' not in service.client.get("/metrics").text


def test_openapi_tells_of_every_body_answer_and_problem(service):
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


def test_every_answer_has_security_headers_and_an_id(service, cat_jpeg):
    for answer in (
        service.detect(cat_jpeg),
        service.detect(b""),
        service.client.get("/nowhere"),
        service.client.get("/docs"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"]


def test_an_unexpected_failure_is_a_problem_that_tells_nothing(serve_faulty, faulty, encoded, monkeypatch):
    with serve_faulty() as live:
        monkeypatch.setattr(faulty, "canvas_for", lambda *_: 1 / 0)
        answer = live.detect(encoded())
        assert answer.status_code == 500
        assert answer.json()["code"] == "internal_error"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert "division" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_keys_are_asked_for_where_a_file_of_them_is_set(serve_faulty, encoded, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# of the cameras\nfirst-key\n\nsecond-key\n")
    with serve_faulty(api_keys_file=keys) as live:
        live.app.state.pipeline.keys.LOOK_EVERY = 0
        for headers in (
            {},
            {"X-API-Key": "wrong"},
            {"Authorization": "Basic first-key"},
            {"X-API-Key": "# of the cameras"},
        ):
            answer = live.detect(encoded(), headers=headers)
            assert answer.status_code == 401
            assert "Bearer" in answer.headers["www-authenticate"]
        assert live.client.get("/model").status_code == 401
        assert live.detect(encoded(), headers={"X-API-Key": "first-key"}).status_code == 200
        assert live.detect(encoded(), headers={"Authorization": "Bearer second-key"}).status_code == 200
        assert live.client.get("/readyz").status_code == 200
        keys.write_text("third-key\n")
        assert live.detect(encoded(), headers={"X-API-Key": "first-key"}).status_code == 401
        assert live.detect(encoded(), headers={"X-API-Key": "third-key"}).status_code == 200


def test_a_key_file_without_a_key_stops_the_start(serve_faulty, tmp_path):
    for name, text in (("empty", "# none\n"), ("missing", None)):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(SettingsError, match="FRCNN_API_KEYS_FILE"), serve_faulty(api_keys_file=tmp_path / name):
            pass


def test_the_log_has_a_line_a_request_and_never_picture_data(serve_faulty, encoded, caplog):
    with caplog.at_level(logging.INFO, "frcnn"), serve_faulty() as live:
        live.detect(encoded(), headers={"X-Request-ID": "one", "X-API-Key": "secret-key"})
        live.client.get("/livez")
    lines = [record for record in caplog.records if record.name == "frcnn.access"]
    assert len(lines) == 1
    entry = json.loads(JsonFormatter().format(lines[0]))
    assert (entry["request_id"], entry["route"], entry["status"]) == ("one", "/detect", 200)
    assert entry["timings_ms"]["total"] > 0
    text = TextFormatter().format(lines[0])
    assert "status=200" in text
    assert "\n" not in text
    assert "secret-key" not in text + json.dumps(entry)
    assert len(text) < 700
