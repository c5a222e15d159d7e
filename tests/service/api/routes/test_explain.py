"""``POST /explain``: boxes in, what became of each out, for one forward pass."""

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


def _refused(answer, *words):
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    for word in words:
        assert word in answer.json()["detail"], answer.json()["detail"]
    return answer.json()["errors"][0]["name"]


def test_what_detect_finds_explain_calls_found(service, ask, cat_jpeg):
    detections = service.detect(cat_jpeg, params=LOW).json()
    body = ask(detections["boxes"], labels=detections["labels"], **LOW).json()
    assert body["iou"] == 0.5
    assert [it["stage"] for it in body["explanations"]] == ["found"] * len(detections["boxes"])
    for number, it in enumerate(body["explanations"]):
        assert it["box"] == detections["boxes"][number]
        assert it["label"] == detections["labels"][number]
        if it["detection"]["index"] == number:
            assert it["detection"]["box"] == detections["boxes"][number]
            assert it["detection"]["score"] == detections["scores"][number]
    assert {"found"} == {it["stage"] for it in ask(detections["boxes"], **LOW).json()["explanations"]}


def test_an_explanation_tells_the_whole_story(ask):
    body = ask([BOX, [0, 0, 3, 3]], labels=["cat", None], score_threshold=0.9).json()
    assert body["image"] == {"width": 451, "height": 300}
    assert body["timings_ms"]["total"] > 0
    missed, tiny = body["explanations"]
    for it in (missed, tiny):
        assert it["stage"] in STAGES
        assert it["sentence"].endswith(".")
        assert set(it["anchor"]) == {
            "index", "level", "cell", "size", "ratio", "box", "iou", "objectness", "rank", "level_anchors"
        }  # fmt: skip
        assert set(it["proposal"]) == {"index", "anchor", "box", "iou", "suppressed_by"}
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


def test_a_form_says_the_same(service, ask, cat_jpeg):
    boxes = [BOX, [10, 10, 60, 90]]
    by_json = ask(boxes, labels=["cat", None], **LOW).json()["explanations"]
    for labels in ('["cat", null]', '["1", null]'):
        form = {"boxes": json.dumps(boxes), "labels": labels, "score_threshold": "0.01"}
        answer = service.client.post("/explain", files={"image": cat_jpeg}, data=form)
        assert answer.status_code == 200, answer.text
        assert answer.json()["explanations"] == by_json
    one = {"boxes": json.dumps([BOX]), "labels": "cat"}
    answer = service.client.post("/explain", files={"image": cat_jpeg}, data=one, params=LOW)
    assert answer.json()["explanations"] == by_json[:1]
    repeated = {"boxes": json.dumps(boxes), "labels": ["cat", "dog"]}
    answer = service.client.post("/explain", files={"image": cat_jpeg}, data=repeated, params=LOW)
    assert [it["label"] for it in answer.json()["explanations"]] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("frame", "box"),
    [
        ({"box_format": "xywh"}, [100, 50, 200, 200]),
        ({"box_format": "cxcywh"}, [200, 150, 200, 200]),
        ({"normalized": True}, [100 / 451, 50 / 300, 300 / 451, 250 / 300]),
    ],
)
def test_boxes_go_in_and_come_out_in_the_frame_that_is_asked_for(ask, frame, box):
    plain = ask([BOX], **LOW).json()["explanations"][0]
    framed = ask([box], **frame, **LOW).json()["explanations"][0]
    assert framed["stage"] == plain["stage"]
    assert framed["box"] == pytest.approx(box, abs=1e-3)
    assert framed["anchor"]["index"] == plain["anchor"]["index"]
    assert framed["anchor"]["iou"] == pytest.approx(plain["anchor"]["iou"], abs=1e-4)
    assert framed["anchor"]["box"] != plain["anchor"]["box"]


def test_it_costs_one_forward_pass_however_many_boxes(service, ask):
    worker = service.app.state.pipeline.worker
    model = worker.detector.model
    with (
        patch.object(model, "run_convolutions", wraps=model.run_convolutions) as convolutions,
        patch.object(model.roi_heads, "forward", wraps=model.roi_heads.forward) as heads,
    ):
        assert ask([[i, i, i + 40, i + 40] for i in range(100)]).status_code == 200
    assert (convolutions.call_count, heads.call_count) == (1, 1)


def test_boxes_that_make_no_sense_are_422_and_said_which(ask):
    name = _refused(ask([BOX, [0, 0, 500, 100]]), "box 1", "451 x 300 pixels")
    assert name == "boxes"
    _refused(ask([[-5, 0, 50, 50]]), "reaches out of the image")
    _refused(ask([[50, 50, 50, 90]]), "box 0", "has no area")
    _refused(ask([[80, 50, 50, 90]]), "has no area")
    _refused(ask([[10, 10, -5, 5]], box_format="xywh"), "has no area")
    _refused(ask([[0, 0, 2, 1]], normalized=True), "reaches out of the image")
    _refused(ask([[1, 2, 3]]), "4 items")
    _refused(ask([]), "at least 1")
    _refused(ask([BOX] * 101), "at most 100")
    _refused(ask([[1, 2, "wide", 4]]), "number")
    _refused(ask({"x": 1}), "list")
    _refused(ask("[[1, 2"), "JSON")
    assert ask([[0, 0, 451.6, 300.4]]).status_code == 200  # clients round


def test_boxes_must_be_there(service, cat_jpeg):
    _refused(service.client.post("/explain", files={"image": cat_jpeg}), "boxes: field required")
    _refused(service.client.post("/explain", content=cat_jpeg), "boxes: field required")


def test_labels_and_options_that_make_no_sense_are_422(ask):
    assert _refused(ask([BOX], labels=["cat", "dog"]), "2 for 1 boxes") == "labels"
    assert _refused(ask([BOX], labels=["unicorn"]), "'unicorn' is not a class") == "labels"
    assert _refused(ask([BOX], labels=[0]), "ids are 1 to 3") == "labels"
    assert _refused(ask([BOX], iou=0), "the range is 0.05 to 1") == "iou"
    assert _refused(ask([BOX], classes=["cat"]), "no such option") == "classes"


def test_openapi_tells_of_the_boxes_and_the_words(service):
    document = service.client.get("/openapi.json").json()
    route = document["paths"]["/explain"]["post"]
    assert set(route["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    for form in route["requestBody"]["content"].values():
        assert form["schema"]["required"] == ["image", "boxes"]
        assert {"boxes", "labels", "iou", "score_threshold"} <= set(form["schema"]["properties"])
    words = document["components"]["schemas"]["ExplanationAnswer"]["properties"]["stage"]
    assert words["enum"] == list(STAGES)
    assert "/explain" in service.client.get("/docs").text
