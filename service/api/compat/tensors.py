"""Requests and responses of the Open Inference Protocol v2, as JSON and with its binary tensor extension."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.json_body import JsonBody, parse_json
from service.errors import BadOption, BadRequest, TooLarge

HEADER_LENGTH = "Inference-Header-Content-Length"
INPUT = {"name": "image", "datatype": "BYTES", "shape": [-1]}
OUTPUTS = [
    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "scores", "datatype": "FP32", "shape": [-1]},
    {"name": "class_ids", "datatype": "INT64", "shape": [-1]},
    {"name": "labels", "datatype": "BYTES", "shape": [-1]},
    {"name": "counts", "datatype": "INT64", "shape": [-1]},
]
MAX_ID = 1000  # characters
MAX_OUTPUTS = 16  # requested in one request
_OUTPUT_NAMES = [str(output["name"]) for output in OUTPUTS]
_DATATYPES = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}
_TRANSPORT = frozenset({"binary_data", "sequence_id", "sequence_start", "sequence_end"})  # no options of this service


class TensorParameters(BaseModel):
    """The parameters of a tensor, with the binary extension's; others are ignored."""

    binary_data: bool | None = None
    binary_data_size: int | None = Field(None, strict=True, ge=0)


class InputTensor(BaseModel):
    """An input tensor. data: what the JSON holds, nested as it may be; None where the tensor is binary."""

    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=8, fail_fast=True)
    parameters: TensorParameters | None = None
    data: Any = None


class RequestedOutput(BaseModel):
    """An output that the request asks for."""

    name: str
    parameters: TensorParameters | None = None


class RequestParameters(BaseModel):
    """The parameters of the request: the binary extension's, and as extras the options of ``POST /detect``."""

    model_config = ConfigDict(extra="allow")

    binary_data_output: bool = False


class InferDocument(BaseModel):
    """The JSON of an ``infer`` request."""

    id: str = Field("", max_length=MAX_ID)
    inputs: list[InputTensor] = Field(min_length=1, max_length=1, fail_fast=True)
    outputs: list[RequestedOutput] | None = Field(None, max_length=MAX_OUTPUTS, fail_fast=True)
    parameters: RequestParameters | None = None


@dataclass(frozen=True)
class InferRequest:
    """A parsed ``infer`` request.

    images: encoded files. options: of ``POST /detect``. outputs: by name, in the requested order, whether each is to be
    binary; None for all outputs. binary: the default of outputs that do not choose.
    """

    request_id: str
    images: tuple[bytes, ...]
    options: Mapping[str, Any]
    outputs: Mapping[str, bool] | None
    binary: bool


def parse_infer_request(body: bytes, header_length: str | None, max_images: int, max_pixels: int) -> InferRequest:
    """Parse the body of an ``infer`` request.

    header_length: bytes of the JSON before the binary tensors; None where there are none. Raises ``BadRequest``,
    ``BadOption``, ``TooLarge``.
    """
    end = len(body) if header_length is None else _parse_length(header_length, len(body))
    document, json_body = _parse_document(body[:end])
    [tensor] = document.inputs
    parameters = document.parameters or RequestParameters()
    binary = parameters.binary_data_output
    data = tensor.data
    if tensor.parameters is not None and (size := tensor.parameters.binary_data_size) is not None:
        if size > len(body) - end:
            raise BadRequest(f"The binary tensor `image` has {size} bytes, and {len(body) - end} follow the JSON.")
        data = memoryview(body)[end : end + size]
    if tensor.name != INPUT["name"]:
        raise BadRequest(f"There is no input {tensor.name[:60]!r}; there is `image`.")
    requested = None if document.outputs is None else _requested_outputs(document.outputs, binary)
    if tensor.datatype == "BYTES":
        images = _split_files(data, json_body, max_images)
    elif tensor.datatype == "UINT8":
        images = (_encode_pixels(data, tensor.shape, max_pixels),)
    else:
        raise BadOption(
            "The input `image` must be BYTES (files) or UINT8 (RGB pixels).",
            fields=[{"name": "image", "problem": "datatype"}],
        )
    options = {name: value for name, value in (parameters.model_extra or {}).items() if name not in _TRANSPORT}
    return InferRequest(document.id, images, options, requested, binary)


def _parse_length(text: str, body_bytes: int) -> int:
    if not re.fullmatch("[0-9]{1,12}", text) or int(text) > body_bytes:
        raise BadRequest(f"The header {HEADER_LENGTH} must be a number of bytes within the body.")
    return int(text)


def _parse_document(body: bytes) -> tuple[InferDocument, JsonBody]:
    """Parse the JSON; in the input's ``data`` long strings are still placeholders."""
    try:
        json_body = parse_json(body, '{"inputs": [{"name": "image", ...}]}')
        members = json_body.members
        tensor = inputs[0] if isinstance(inputs := members.get("inputs"), list) and inputs else None
        data = tensor.pop("data", None) if isinstance(tensor, dict) else None
        document = InferDocument.model_validate(json_body.restore(members))
    except TooLarge as error:
        raise TooLarge(f"{error.detail} Send pixels with the binary tensor extension, or as a file.") from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise BadRequest(
            f"The body is not an inference request with one input tensor ({place[:60]}: {problem['msg'][:200]}); "
            "see GET /v2/models/NAME."
        ) from None
    document.inputs[0].data = data
    return document, json_body


def _requested_outputs(outputs: list[RequestedOutput], binary: bool) -> dict[str, bool]:
    requested: dict[str, bool] = {}
    for output in outputs:
        if output.name not in _OUTPUT_NAMES:
            raise BadRequest(f"There is no output {output.name[:60]!r}; there are {', '.join(_OUTPUT_NAMES)}.")
        chosen = output.parameters.binary_data if output.parameters is not None else None
        requested[output.name] = binary if chosen is None else chosen
    return requested


def write_infer_response(
    request: InferRequest, model: str, tensors: Mapping[str, NDArray[Any]]
) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of the response. tensors: by name, all of ``OUTPUTS``."""
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in (request.outputs or dict.fromkeys(tensors, request.binary)).items():
        array = tensors[name]
        output: dict[str, Any] = {"name": name, "datatype": _DATATYPES[str(array.dtype)], "shape": list(array.shape)}
        if binary:
            tail.append(_pack(array))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        elif array.dtype == object:
            output["data"] = [item.decode() for item in array]
        else:
            output["data"] = array.ravel()
        outputs.append(output)
    document: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": outputs}
    if request.request_id:
        document["id"] = request.request_id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *tail]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def _pack(array: NDArray[Any]) -> bytes:
    """Return the array's bytes: little-endian numbers, or for BYTES each item after its length in four bytes."""
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(item)) + item for item in array)
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _split_files(data: Any, json_body: JsonBody, max_images: int) -> tuple[bytes, ...]:
    files: list[bytes] = []
    if isinstance(data, memoryview):
        offset = 0
        while offset < len(data) and len(files) <= max_images:
            if offset + 4 > len(data):
                raise BadRequest("The binary tensor `image` ends in the middle of an item.")
            (length,) = struct.unpack_from("<I", data, offset)
            files.append(bytes(data[offset + 4 : offset + 4 + length]))
            offset += 4 + length
        if offset > len(data):
            raise BadRequest("The binary tensor `image` ends in the middle of an item.")
    else:
        if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
            raise BadRequest("In JSON the data of a BYTES `image` is a list of images in base64.")
        files = [json_body.decode_base64(item, "data") for item in data[: max_images + 1]]
    if not 1 <= len(files) <= max_images:
        problem = f"1 to {max_images}"
        raise BadOption(f"Send from {problem} images.", fields=[{"name": "image", "problem": problem}])
    return tuple(files)


def _encode_pixels(data: Any, shape: list[int], max_pixels: int) -> bytes:
    """Return RGB pixels as a lossless file, so that they are handled like every image."""
    if len(shape) == 4 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise BadRequest("A UINT8 `image` has the shape [H, W, 3] or [1, H, W, 3], RGB.")
    height, width = shape[:2]
    if height * width > max_pixels:
        raise TooLarge(f"The image has {height * width} pixels; at most {max_pixels} are accepted.")
    try:
        flat = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else _to_uint8(data)
        pixels = flat.reshape(height, width, 3)
    except ValueError:
        raise BadRequest("The data of `image` does not have its declared shape, or is not UINT8.") from None
    file = BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def _to_uint8(data: Any) -> NDArray[np.uint8]:
    """Return a list of integers, nested as it may be, as an array. Raises ``ValueError`` for all else."""
    array = np.array(data)
    if array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() <= 255):
        raise ValueError("not integers from 0 to 255")
    return array.astype(np.uint8)
