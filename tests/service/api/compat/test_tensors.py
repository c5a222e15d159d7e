"""Broken requests of the Open Inference Protocol."""

import base64
import contextlib
import struct
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.compat.tensors import parse_infer_request
from service.errors import BadOption, BadRequest, ServiceError, TooLarge
from tests.service.conftest import Live

TENSOR = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["eA=="]}
BINARY = {"name": "image", "datatype": "BYTES", "shape": [1]}


def parse(document: object, tail: bytes = b"", header_length: str | None = None):
    """Parse a request whose JSON is ``document``."""
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    if tail and header_length is None:
        header_length = str(len(body))
    return parse_infer_request(body + tail, header_length, max_images=4, max_pixels=1_000_000)


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
def test_broken_inference_requests_are_refused_with_a_message(compat_service: Live, body: bytes) -> None:
    response = compat_service.client.post("/v2/models/fake/infer", content=body)
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]


@pytest.mark.parametrize("header_length", ["9" * 5000, "-1", "", "x", "1e3", "99999", "+5", "٣", "1_0"])
def test_a_header_length_that_is_no_length_within_the_body_is_refused(header_length: str) -> None:
    with pytest.raises(BadRequest, match="number of bytes within the body"):
        parse({"inputs": [TENSOR]}, header_length=header_length)


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ({"outputs": [{"name": 5}]}, "outputs.0.name"),
        ({"outputs": [5]}, "outputs.0"),
        ({"outputs": "boxes"}, "outputs"),
        ({"outputs": [{"name": "boxes"}] * 17}, "outputs"),
        ({"outputs": [{"name": "boxes", "parameters": 7}]}, "outputs.0.parameters"),
        ({"outputs": [{"name": "masks"}]}, "no output 'masks'"),
        ({"parameters": [1]}, "parameters"),
        ({"id": 7}, "id"),
        ({"id": "x" * 1001}, "id"),
        ({"inputs": [TENSOR, TENSOR]}, "inputs"),
        ({"inputs": [TENSOR | {"shape": [2**40]}]}, "inputs.0.shape.0"),
        ({"inputs": [TENSOR | {"shape": [1] * 9}]}, "inputs.0.shape"),
        ({"inputs": [TENSOR | {"name": "x"}]}, "no input 'x'"),
        ({"inputs": [BINARY | {"parameters": {"binary_data_size": -1}}]}, "binary_data_size"),
        ({"inputs": [BINARY | {"parameters": {"binary_data_size": True}}]}, "binary_data_size"),
        ({"inputs": [BINARY | {"parameters": {"binary_data_size": "5"}}]}, "binary_data_size"),
        ({"inputs": [BINARY | {"parameters": {"binary_data_size": 6}}]}, "has 6 bytes, and 5 follow"),
    ],
)
def test_a_member_that_is_wrong_is_named(members: dict, place: str) -> None:
    with pytest.raises(BadRequest, match=place):
        parse({"inputs": [TENSOR]} | members, b"\1\0\0\0x")


def test_a_shape_that_is_infinite_is_refused() -> None:
    with pytest.raises(BadRequest):
        parse(b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1e400], "data": ["eA=="]}]}')


def test_large_images_in_base64_are_decoded_and_the_options_are_returned() -> None:
    images = tuple(bytes([number]) * 90_000 for number in range(3))
    data = [base64.b64encode(image).decode() for image in images]
    parameters = {
        "classes": ["cat"],
        "regions": "[[0,0,9,9]]" + " " * 2000,
        "binary_data_output": True,
        "sequence_id": 7,
    }
    request = parse({"id": "7", "inputs": [TENSOR | {"shape": [3], "data": data}], "parameters": parameters})
    assert request.images == images
    assert request.options == {"classes": ["cat"], "regions": parameters["regions"]}
    assert (request.request_id, request.binary, request.outputs) == ("7", True, None)
    with pytest.raises(BadOption, match="1 to 4 images"):
        parse({"inputs": [TENSOR | {"data": data * 2}]})


def test_many_pixels_as_json_are_413_and_the_message_names_the_binary_extension() -> None:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [300, 300, 3], "data": [0] * 270_000}
    with pytest.raises(TooLarge, match="binary tensor extension"):
        parse({"inputs": [tensor]})


@pytest.mark.parametrize(
    "data", [[0.5, 1, 2], [True] * 3, ["1", "2", "3"], [[0, 1], [2]], [0, 1, 256], {}, None, 2**63]
)
def test_pixels_that_are_not_integers_of_eight_bits_are_refused(data: object) -> None:
    with pytest.raises(BadRequest, match="declared shape"):
        parse({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 3], "data": data}]})


@pytest.mark.parametrize("unit", ["null", "{}", "[]", '{"name":5}', '{"name":"boxes"}', '"eA=="'])
@pytest.mark.parametrize("document", ['{"inputs":[%s]}', '{"inputs":[{"name":"image","shape":[%s],"data":[%s]}]}'])
def test_lists_of_anything_cost_little(document: str, unit: str) -> None:
    items = ",".join([unit] * (30_000 // (len(unit) + 1)))
    started = time.thread_time()
    with contextlib.suppress(ServiceError):
        parse(document.replace("%s", items).encode())
    with contextlib.suppress(ServiceError):
        parse(f'{{"inputs":[{orjson.dumps(TENSOR).decode()}],"outputs":[{items}]}}'.encode())
    assert time.thread_time() - started < 1


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e308, 0, 1, 3, "BYTES", "UINT8", "image", "boxes", "eA=="])
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=2),
    max_leaves=6,
)


def _some(**members: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional={name: values | _json for name, values in members.items()})


_parameters = _some(binary_data=st.booleans(), binary_data_size=st.integers(-2, 9), binary_data_output=st.booleans())
_tensor = _some(
    name=st.just("image"),
    datatype=st.sampled_from(["BYTES", "UINT8"]),
    shape=st.lists(st.sampled_from([0, 1, 3, -1, 2**31 - 1]), max_size=5),
    parameters=_parameters,
    data=st.lists(st.just("eA==") | st.integers(-1, 256), max_size=4),
)
_documents = _some(
    id=st.text(max_size=3),
    inputs=st.lists(_tensor, max_size=2),
    outputs=st.lists(_tensor, max_size=3),
    parameters=_parameters,
)


@settings(max_examples=100, deadline=None)
@given(_documents, st.sampled_from([b"", b"\0\0\0", struct.pack("<I", 1) + b"x", struct.pack("<I", 2**32 - 1)]))
def test_no_document_raises_anything_but_the_services_errors(document: object, tail: bytes) -> None:
    with contextlib.suppress(ServiceError):
        parse(document, tail)
