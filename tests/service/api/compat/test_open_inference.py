"""The Open Inference Protocol, as Triton's own client uses it."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.service.conftest import Live

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")


@pytest.fixture
def client(compat_service: Live) -> Iterator[object]:
    with triton.InferenceServerClient(compat_service.url.removeprefix("http://")) as client:
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
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("boxes", "labels", "counts")]
    result = client.infer("fake", [image], outputs=outputs, request_id="request-7")
    np.testing.assert_array_equal(result.as_numpy("boxes"), [[0, 0, 48, 32]])
    assert [label if isinstance(label, str) else label.decode() for label in result.as_numpy("labels")] == ["cat"]
    np.testing.assert_array_equal(result.as_numpy("counts"), [1])
    assert result.get_response()["id"] == "request-7"
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


def test_tritonclient_gets_the_message_of_an_error(client) -> None:
    image = triton.InferInput("image", [2, 2, 4], "UINT8")
    image.set_data_from_numpy(np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"\[H, W, 3\]"):
        client.infer("fake", [image])
    with pytest.raises(triton.InferenceServerException, match="There is no model"):
        client.infer("other", [image])
