"""``POST /proposals``, and the proposals that ``POST /detect`` returns with its detections."""

import io

import numpy as np
import pytest
from PIL import Image

from model.presets import LITE

STRIDES = (8, 16, 32)


LONG = LITE.transform.max_size  # the cat's longer side on its canvas


LOW = {"score_threshold": "0.01"}


@pytest.fixture(scope="module")
def ask(service, cat_jpeg):
    def ask(accept="application/json", **params):
        headers = {"Content-Type": "image/jpeg", "Accept": accept}
        return service.client.post("/proposals", content=cat_jpeg, headers=headers, params=params)

    return ask


def _apply_deltas(anchors, deltas):
    """Return ``anchors`` moved by ``deltas`` (equation 2 of the paper), clipped to the image."""
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    half = size * np.exp(deltas[:, 2:]) / 2
    return np.hstack([centre - half, centre + half]).clip(0, [451, 300, 451, 300])


@pytest.mark.parametrize("stage", ["final", "pre_nms"])
def test_every_box_is_its_anchor_plus_deltas_and_the_anchor_is_centred_on_its_cell(ask, stage):
    body = ask(stage=stage, limit=10_000).json()
    assert body["stage"] == stage
    boxes, anchors, deltas = (np.array(body[key]) for key in ("boxes", "anchors", "deltas"))
    np.testing.assert_allclose(boxes, _apply_deltas(anchors, deltas), atol=0.05)
    scale = 451 / LONG
    step = np.array(STRIDES)[body["levels"]][:, None] * scale
    np.testing.assert_allclose(
        (anchors[:, :2] + anchors[:, 2:]) / 2, np.array(body["cells"])[:, ::-1] * step, rtol=0.01
    )
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    np.testing.assert_allclose(height / width, body["ratios"], rtol=0.02)
    np.testing.assert_allclose(np.sqrt(height * width), np.array(body["sizes"]) * scale, rtol=0.02)


def test_the_final_proposals_are_the_candidates_that_nms_kept(ask):
    before, final = ask(stage="pre_nms", limit=10_000).json(), ask(limit=10_000).json()
    assert before["count"] == sum(min(row["anchors"], LITE.rpn.pre_nms) for row in before["stage_counts"])
    assert before["objectness"] == sorted(before["objectness"], reverse=True)
    assert set(final["outcomes"]) == {"kept"}
    assert final["proposal_indices"] == list(range(final["count"]))
    assert {"kept", "rpn_nms"} <= set(before["outcomes"]) <= {"kept", "rpn_nms", "too_small", "proposal_limit"}
    for index, outcome, box in zip(before["proposal_indices"], before["outcomes"], before["boxes"], strict=True):
        assert (index is not None) == (outcome == "kept")
        assert index is None or final["boxes"][index] == box


def test_the_stage_counts_fall_and_no_filter_changes_them(ask):
    whole = ask(limit=10_000).json()
    names = ("anchors", "above_threshold", "after_top_k", "after_size", "after_nms", "kept")
    for row in whole["stage_counts"]:
        counts = [row[name] for name in names]
        assert counts == sorted(counts, reverse=True)
    assert [row["kept"] for row in whole["stage_counts"]] == np.bincount(whole["levels"], minlength=3).tolist()
    assert ask(level=0, min_objectness=0.5, stage="pre_nms").json()["stage_counts"] == whole["stage_counts"]


def test_candidates_are_filtered_and_limited(ask):
    body = ask(stage="pre_nms", level=1, limit=7).json()
    assert body["levels"] == [1] * 7
    assert body["count"] > 7
    assert body["ranks"] == list(range(7))


def test_an_unknown_level_is_422(ask):
    response = ask(level=3)
    assert response.status_code == 422
    assert "from 0 to 2" in response.json()["detail"]


def test_unknown_stages_and_views_are_422(ask):
    for params in ({"stage": "during"}, {"view": "x-ray"}):
        response = ask(**params)
        assert response.status_code == 422
        assert response.json()["errors"][0]["name"] in params


def test_the_heat_maps_have_values_origin_and_step(ask):
    body = ask(view="objectness", limit=1).json()
    assert [heat["level"] for heat in body["maps"]] == [0, 1, 2]
    for heat, stride, row in zip(body["maps"], STRIDES, body["stage_counts"], strict=True):
        values = np.array(heat["values"])
        assert values.size * 6 == row["anchors"]
        assert 0 <= values.min() <= values.max() <= 1
        assert heat["step"] == pytest.approx([stride * 451 / LONG] * 2, rel=0.01)
        assert heat["origin"] == pytest.approx([0, 0], abs=1e-3)
    assert max(np.max(heat["values"]) for heat in body["maps"]) == pytest.approx(body["objectness"][0])
    assert len(ask(view="objectness", level=2).json()["maps"]) == 1
    shares = ask(view="objectness", level=0, normalized="true").json()["maps"][0]["step"]
    assert shares == pytest.approx([8 / LONG, 8 / (LONG * 300 / 451)], rel=0.01)
    assert "maps" not in ask().json()


def test_the_heat_map_is_drawn_over_the_image(ask):
    single = Image.open(io.BytesIO(ask("image/png", view="objectness", level=1).content))
    assert single.size == (451, 300)
    row = Image.open(io.BytesIO(ask("image/png", view="objectness").content))
    assert row.size == (3 * 451, 300)
    drawn = ask("image/png", stage="pre_nms", limit=5)
    assert drawn.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(drawn.content)).size == (451, 300)
    assert drawn.content != ask("image/png", stage="pre_nms", limit=1).content


def test_a_detection_names_its_proposal(service, cat_jpeg):
    body = service.detect(cat_jpeg, params=LOW | {"proposals": 300}).json()
    proposals = body["proposals"]
    assert len(body["proposal_indices"]) == len(body["boxes"]) > 0
    assert len(proposals["cells"]) == len(proposals["sizes"]) == len(proposals["ratios"]) == len(proposals["boxes"])
    # Random weights hardly move a box: each detection lies on the proposal that it names.
    parents = np.array(proposals["boxes"])[body["proposal_indices"]]
    assert np.abs(parents - np.array(body["boxes"])).max() < 25
    assert "proposal_indices" not in service.detect(cat_jpeg, params=LOW).json()


def test_openapi_describes_stages_views_and_counts(service):
    document = service.client.get("/openapi.json").json()
    response = document["components"]["schemas"]["ProposalsResponse"]["properties"]
    assert {"stage_counts", "outcomes", "cells", "sizes", "ratios", "maps", "stage"} <= set(response)
    parameters = {p["name"]: p["schema"] for p in document["paths"]["/proposals"]["post"]["parameters"]}
    assert parameters["stage"]["enum"] == ["final", "pre_nms"]
    assert parameters["view"]["enum"] == ["boxes", "objectness"]


def test_the_centre_of_a_proposal_is_moved_by_its_delta(service, cat_jpeg):
    headers = {"Content-Type": "image/jpeg"}
    body = service.client.post("/proposals", content=cat_jpeg, headers=headers, params={"limit": 20}).json()
    assert body["count"] > len(body["boxes"]) == 20
    assert body["objectness"] == sorted(body["objectness"], reverse=True)
    anchors, deltas, boxes = (np.array(body[key]) for key in ("anchors", "deltas", "boxes"))
    # Equation 2 of the paper: the centre moves by tx of the anchor's width.
    centres = (anchors[:, 0] + anchors[:, 2]) / 2 + deltas[:, 0] * (anchors[:, 2] - anchors[:, 0])
    inside = (boxes[:, 0] > 0.01) & (boxes[:, 2] < 450.9)
    np.testing.assert_allclose(((boxes[:, 0] + boxes[:, 2]) / 2)[inside], centres[inside], atol=1.0)


def test_proposals_can_be_filtered_by_level_and_objectness(service, cat_jpeg):
    def ask(**params):
        headers = {"Content-Type": "image/jpeg"}
        return service.client.post("/proposals", content=cat_jpeg, headers=headers, params=params).json()

    everything = ask(limit=10000)
    assert len(everything["boxes"]) == everything["count"]
    level = everything["levels"][0]
    assert set(ask(level=level)["levels"]) == {level}
    middle = everything["objectness"][everything["count"] // 2]
    assert min(ask(min_objectness=middle, limit=10000)["objectness"]) >= middle


def test_proposals_are_drawn_where_the_client_accepts_an_image(service, cat_jpeg):
    response = service.client.post("/proposals", content=cat_jpeg, headers={"Accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(response.content)).size == (451, 300)


def test_boxes_of_a_reduced_jpeg_are_in_the_pixels_of_the_file(service, chelsea):
    """A JPEG far larger than the canvas is decoded reduced; a BMP, which cannot be, has the same boxes."""
    large = Image.fromarray(chelsea).resize((1204, 800), Image.Resampling.BICUBIC)
    files = [io.BytesIO(), io.BytesIO()]
    large.save(files[0], "JPEG", quality=95)
    large.save(files[1], "BMP")
    reduced, full = (
        service.client.post("/proposals", content=file.getvalue(), params={"limit": 5}).json() for file in files
    )
    assert reduced["image"] == full["image"] == {"width": 1204, "height": 800}
    assert np.abs(np.array(reduced["boxes"]) - np.array(full["boxes"])).max() < 20
