"""The metrics that the documentation lists."""

import re


def test_every_documented_metric_is_there_and_counts(service, cat_jpeg):
    before = service.metric("frcnn_requests_total", route="/detect", status="200")
    service.detect(cat_jpeg)
    service.detect(b"no image")
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
        r'frcnn_image_processes{state="idle"} \d',
        r'frcnn_image_processes{state="busy"} \d',
        r"frcnn_image_jobs_waiting 0",
        *(
            rf'frcnn_image_processes_killed_total{{reason="{reason}"}} \d'
            for reason in ("deadline", "memory", "processor", "crash")
        ),
        r'frcnn_model_info{.*preset="LITE".*} 1',
    ):
        assert re.search(rf"^{line}", text, re.MULTILINE), line


def test_unknown_paths_make_no_time_series(service):
    for path in ("/a", "/b", "/c?d=e"):
        service.client.get(path)
    assert 'route="/a"' not in service.client.get("/metrics").text
