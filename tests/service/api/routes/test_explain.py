"""``POST /explain``: an explanation for each expected box, for one forward pass."""

import base64
import json
from unittest.mock import patch

import pytest

from model.explain.stages import STAGES

LOW = {"score_threshold": 0.01}


BOX = [100.0, 50.0, 300.0, 250.0]


@pytest.fixture(scope="module")
def ask(service, cat_jpeg):
    def ask(boxes, **options):
        document = {"image": base64.b64encode(cat_jpeg).decode(), "boxes": boxes} | options
        return service.client.post("/explain", json=document)

    return ask


def _option_error(response, *phrases):
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    for phrase in phrases:
        assert phrase in response.json()["detail"], response.json()["detail"]
    return response.json()["errors"][0]["name"]


def test_the_detections_of_detect_are_explained_as_found(service, ask, cat_jpeg):
    detections = service.detect(cat_jpeg, params=LOW).json()
    body = ask(detections["boxes"], labels=detections["labels"], **LOW).json()
    assert body["iou"] == 0.5
    assert [explanation["stage"] for explanation in body["explanations"]] == ["found"] * len(detections["boxes"])
    for number, explanation in enumerate(body["explanations"]):
        assert explanation["box"] == detections["boxes"][number]
        assert explanation["label"] == detections["labels"][number]
        if explanation["detection"]["index"] == number:
            assert explanation["detection"]["box"] == detections["boxes"][number]
            assert explanation["detection"]["score"] == detections["scores"][number]
    assert {"found"} == {explanation["stage"] for explanation in ask(detections["boxes"], **LOW).json()["explanations"]}


def test_an_explanation_has_anchor_proposal_and_detection(ask):
    body = ask([BOX, [0, 0, 3, 3]], labels=["cat", None], score_threshold=0.9).json()
    assert body["image"] == {"width": 451, "height": 300}
    assert body["timings_ms"]["total"] > 0
    missed, tiny = body["explanations"]
    for explanation in (missed, tiny):
        assert explanation["stage"] in STAGES
        assert explanation["sentence"].endswith(".")
        assert set(explanation["anchor"]) == {
            "index", "level", "cell", "size", "ratio", "box", "iou", "objectness", "rank", "level_anchors"
        }  # fmt: skip
        assert set(explanation["proposal"]) == {"index", "anchor", "box", "iou", "suppressed_by"}
    assert missed["stage"] in ("classified_background", "classified_other", "score_threshold")
    detection = missed["detection"]
    assert detection["label"] == "cat"
    assert detection["index"] is None
    assert detection["class_scores"][detection["class_id"]] == detection["score"] < 0.9
    assert sum(detection["class_scores"]) == pytest.approx(1)
    assert detection["proposal"] == missed["proposal"]["index"]
    assert tiny["stage"] == "no_anchor"
    assert tiny["detection"] is None
    assert tiny["label"] is None


def test_a_form_gives_the_same_explanations_as_json(service, ask, cat_jpeg):
    boxes = [BOX, [10, 10, 60, 90]]
    by_json = ask(boxes, labels=["cat", None], **LOW).json()["explanations"]
    for labels in ('["cat", null]', '["1", null]'):
        form = {"boxes": json.dumps(boxes), "labels": labels, "score_threshold": "0.01"}
        response = service.client.post("/explain", files={"image": cat_jpeg}, data=form)
        assert response.status_code == 200, response.text
        assert response.json()["explanations"] == by_json
    single = {"boxes": json.dumps([BOX]), "labels": "cat"}
    response = service.client.post("/explain", files={"image": cat_jpeg}, data=single, params=LOW)
    assert response.json()["explanations"] == by_json[:1]
    repeated = {"boxes": json.dumps(boxes), "labels": ["cat", "dog"]}
    response = service.client.post("/explain", files={"image": cat_jpeg}, data=repeated, params=LOW)
    assert [explanation["label"] for explanation in response.json()["explanations"]] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        ({"box_format": "xywh"}, [100, 50, 200, 200]),
        ({"box_format": "cxcywh"}, [200, 150, 200, 200]),
        ({"normalized": True}, [100 / 451, 50 / 300, 300 / 451, 250 / 300]),
    ],
)
def test_boxes_are_read_and_written_in_the_requested_frame(ask, frame, box):
    plain = ask([BOX], **LOW).json()["explanations"][0]
    framed = ask([box], **frame, **LOW).json()["explanations"][0]
    assert framed["stage"] == plain["stage"]
    assert framed["box"] == pytest.approx(box, abs=1e-3)
    assert framed["anchor"]["index"] == plain["anchor"]["index"]
    assert framed["anchor"]["iou"] == pytest.approx(plain["anchor"]["iou"], abs=1e-4)
    assert framed["anchor"]["box"] != plain["anchor"]["box"]


def test_many_boxes_cost_one_forward_pass(service, ask):
    worker = service.app.state.pipeline.worker
    model = worker.detector.model
    with (
        patch.object(model, "run_convolutions", wraps=model.run_convolutions) as convolutions,
        patch.object(model.roi_heads, "forward", wraps=model.roi_heads.forward) as heads,
    ):
        assert ask([[i, i, i + 40, i + 40] for i in range(100)]).status_code == 200
    assert (convolutions.call_count, heads.call_count) == (1, 1)


def test_invalid_boxes_are_422_and_named(ask):
    name = _option_error(ask([BOX, [0, 0, 500, 100]]), "box 1", "451 x 300 pixels")
    assert name == "boxes"
    _option_error(ask([[-5, 0, 50, 50]]), "reaches out of the image")
    _option_error(ask([[50, 50, 50, 90]]), "box 0", "has no area")
    _option_error(ask([[80, 50, 50, 90]]), "has no area")
    _option_error(ask([[10, 10, -5, 5]], box_format="xywh"), "has no area")
    _option_error(ask([[0, 0, 2, 1]], normalized=True), "reaches out of the image")
    _option_error(ask([[1, 2, 3]]), "4 items")
    for box_format in ("xyxy", "xywh", "cxcywh"):
        for box in ([1e308] * 4, [-1e308, 0, 1e308, 1], [1e308, 0, -1e308, 1]):
            for normalized in (False, True):
                assert _option_error(ask([box], box_format=box_format, normalized=normalized)) == "boxes"
        _option_error(ask([[1e9, -1e9, 1e9, 1e9]], box_format=box_format, normalized=True), "reaches out of the image")
    _option_error(ask([]), "at least 1")
    _option_error(ask([BOX] * 101), "at most 100")
    _option_error(ask([[1, 2, "wide", 4]]), "number")
    _option_error(ask({"x": 1}), "list")
    _option_error(ask("[[1, 2"), "JSON")
    assert ask([[0, 0, 451.6, 300.4]]).status_code == 200  # clients round


def test_missing_boxes_are_422(service, cat_jpeg):
    _option_error(service.client.post("/explain", files={"image": cat_jpeg}), "boxes: field required")
    _option_error(service.client.post("/explain", content=cat_jpeg), "boxes: field required")


def test_invalid_labels_and_options_are_422(ask):
    assert _option_error(ask([BOX], labels=["cat", "dog"]), "2 for 1 boxes") == "labels"
    assert _option_error(ask([BOX], labels=["unicorn"]), "'unicorn' is not a class") == "labels"
    assert _option_error(ask([BOX], labels=[0]), "ids are 1 to 3") == "labels"
    assert _option_error(ask([BOX], iou=0), "the range is 0.05 to 1") == "iou"
    assert _option_error(ask([BOX], classes=["cat"]), "no such option") == "classes"


def test_openapi_describes_boxes_labels_and_stages(service):
    document = service.client.get("/openapi.json").json()
    route = document["paths"]["/explain"]["post"]
    assert set(route["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    for form in route["requestBody"]["content"].values():
        assert form["schema"]["required"] == ["image", "boxes"]
        assert {"boxes", "labels", "iou", "score_threshold"} <= set(form["schema"]["properties"])
    stage = document["components"]["schemas"]["ExplainedBox"]["properties"]["stage"]
    assert stage["enum"] == list(STAGES)
    assert "/explain" in service.client.get("/docs").text
