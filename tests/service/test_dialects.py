"""Other services' interfaces, as their own clients use them."""

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.service.conftest import FaultyDetector, Live, serving


@pytest.fixture(scope="module")
def speaking() -> Iterator[Live]:
    with serving(lambda _: FaultyDetector(), deepstack=True, huggingface=True, open_inference=True) as live:
        yield live


def test_they_are_silent_unless_they_are_switched_on(serve_faulty, encoded) -> None:
    with serve_faulty() as live:
        for path in ("/v1/vision/detection", "/huggingface/object-detection", "/v2/models/fake/infer"):
            assert live.client.post(path, content=encoded()).status_code == 404


def frigate(response: httpx.Response, size: tuple[int, int]) -> np.ndarray:
    """What Frigate's DeepStack detector makes of an answer: a row of label, confidence and y, x, y, x a prediction."""
    rows = np.zeros((20, 6), np.float32)
    for i, found in enumerate(response.json().get("predictions") or []):
        if found["confidence"] < 0.4:
            break
        y1, x1, y2, x2 = (found[k] for k in ("y_min", "x_min", "y_max", "x_max"))
        rows[i] = [1, found["confidence"], y1 / size[1], x1 / size[0], y2 / size[1], x2 / size[0]]
    return rows


def test_deepstack_answers_as_frigate_reads_it(speaking: Live, encoded) -> None:
    form = {"api_key": "unused"}
    response = speaking.client.post(
        "/v1/vision/detection", data=form, files={"image": encoded((48, 32), format="JPEG")}
    )
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["success"] is True
    assert isinstance(body["inferenceMs"], int)
    [found] = body["predictions"]
    assert found == {"label": "cat", "confidence": pytest.approx(0.9), "x_min": 0, "y_min": 0, "x_max": 48, "y_max": 32}
    np.testing.assert_allclose(frigate(response, (48, 32))[0], [1, 0.9, 0, 0, 1, 1], rtol=1e-6)


def test_deepstack_min_confidence_is_the_threshold_and_there_are_never_more_than_frigate_has_room_for() -> None:
    detector = FaultyDetector()
    with serving(lambda _: detector, deepstack=True) as live:
        picture = detector_png()
        live.client.post("/v1/vision/detection", files={"image": picture}).raise_for_status()
        live.client.post("/v1/vision/detection", data={"min_confidence": "0.7"}, files={"image": picture})
    first, second = (options[0] for options in detector.options[-2:])
    assert (first.score_threshold, first.max_detections) == (0.4, 20)
    assert second.score_threshold == 0.7


def detector_png() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_deepstack_failures_keep_our_status_and_say_it_in_its_words(speaking: Live, encoded) -> None:
    response = speaking.client.post("/v1/vision/detection", files={"image": b"\x89PNG\r\n\x1a\nno"})
    assert response.status_code in (400, 415)
    body = response.json()
    assert body["success"] is False
    assert body["error"] == body["detail"]
    assert not frigate(response, (1, 1)).any()


@pytest.mark.parametrize("form", ["raw", "json"])
def test_hugging_face_gets_its_list(speaking: Live, encoded, form: str) -> None:
    picture = encoded((48, 32))
    path = "/huggingface/object-detection"
    if form == "raw":
        response = speaking.client.post(path, content=picture, headers={"Content-Type": "image/png"})
    else:
        body = {"inputs": base64.b64encode(picture).decode(), "parameters": {"threshold": 0.3}}
        response = speaking.client.post(path, json=body)
    assert response.json() == [
        {"label": "cat", "score": pytest.approx(0.9), "box": {"xmin": 0, "ymin": 0, "xmax": 48, "ymax": 32}}
    ]


def test_hugging_face_without_inputs_is_told_so(speaking: Live) -> None:
    response = speaking.client.post("/huggingface/object-detection", json={"image": "x"})
    assert response.status_code == 400
    assert "inputs" in response.json()["error"]


triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")


@pytest.fixture
def client(speaking: Live) -> Iterator[object]:
    with triton.InferenceServerClient(speaking.url.removeprefix("http://")) as client:
        yield client


def test_tritonclient_reads_health_and_metadata(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fake")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("fake")
    assert [tensor["name"] for tensor in metadata["outputs"]] == ["boxes", "scores", "class_ids", "labels", "counts"]


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_infers_from_pixels(client, binary: bool) -> None:
    pixels = np.full((32, 48, 3), 7, np.uint8)
    image = triton.InferInput("image", [32, 48, 3], "UINT8")
    image.set_data_from_numpy(pixels, binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("boxes", "labels", "counts")]
    result = client.infer("fake", [image], outputs=wanted, request_id="mine")
    np.testing.assert_array_equal(result.as_numpy("boxes"), [[0, 0, 48, 32]])
    assert [label if isinstance(label, str) else label.decode() for label in result.as_numpy("labels")] == ["cat"]
    np.testing.assert_array_equal(result.as_numpy("counts"), [1])
    assert result.get_response()["id"] == "mine"
    assert result.as_numpy("scores") is None


def test_tritonclient_infers_from_several_files_at_once_with_options(client, encoded) -> None:
    files = np.array([encoded((20, 10)), encoded((48, 32))], dtype=np.object_)
    image = triton.InferInput("image", [2], "BYTES")
    image.set_data_from_numpy(files)
    result = client.infer("fake", [image], parameters={"score_threshold": 0.5})
    np.testing.assert_array_equal(result.as_numpy("boxes"), [[0, 0, 20, 10], [0, 0, 48, 32]])
    np.testing.assert_array_equal(result.as_numpy("counts"), [1, 1])
    np.testing.assert_array_equal(result.as_numpy("class_ids"), [1, 1])
    assert result.as_numpy("scores").dtype == np.float32


def test_tritonclient_is_told_what_is_wrong(client) -> None:
    image = triton.InferInput("image", [2, 2, 4], "UINT8")
    image.set_data_from_numpy(np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"\[H, W, 3\]"):
        client.infer("fake", [image])
    with pytest.raises(triton.InferenceServerException, match="There is no model"):
        client.infer("other", [image])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"inputs": []}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": ["x"], "data": []}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": 5}]}',
        b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [2, 2, 3], "data": [1, 2]}]}',
        b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 3], "data": [900, -1, 0]}]}',
        b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": "x"}}]}',
    ],
)
def test_broken_inference_requests_are_refused_with_a_sentence(speaking: Live, body: bytes) -> None:
    response = speaking.client.post("/v2/models/fake/infer", content=body)
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]
