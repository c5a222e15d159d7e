"""Requests and responses of the Open Inference Protocol v2, as JSON and with its binary tensor extension."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from service.errors import BadOption, BadRequest, TooLarge

HEADER_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}
_TRANSPORT = frozenset({"binary_data_output", "binary_data", "sequence_id", "sequence_start", "sequence_end"})


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
    if header_length is None:
        end = len(body)
    elif header_length.isdecimal() and int(header_length) <= len(body):
        end = int(header_length)
    else:
        raise BadRequest(f"The header {HEADER_LENGTH} must be a number of bytes within the body.")
    try:
        document = orjson.loads(body[:end])
        [tensor] = document["inputs"]
        name, datatype, shape = tensor["name"], tensor["datatype"], [int(size) for size in tensor["shape"]]
        parameters = dict(document.get("parameters") or {})
        binary = bool(parameters.get("binary_data_output", False))
        outputs = document.get("outputs")
        requested = None
        if outputs is not None:
            requested = {
                output["name"]: bool((output.get("parameters") or {}).get("binary_data", binary)) for output in outputs
            }
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        data = tensor.get("data") if size is None else body[end : end + int(size)]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise BadRequest(
            "The body is not an inference request with one input tensor; see GET /v2/models/NAME."
        ) from None
    if name != "image":
        raise BadRequest(f"There is no input {str(name)[:60]!r}; there is `image`.")
    if datatype == "BYTES":
        images = _split_files(data, max_images)
    elif datatype == "UINT8":
        images = (_encode_pixels(data, shape, max_pixels),)
    else:
        raise BadOption(
            "The input `image` must be BYTES (files) or UINT8 (RGB pixels).",
            fields=[{"name": "image", "problem": "datatype"}],
        )
    options = {key: value for key, value in parameters.items() if key not in _TRANSPORT}
    return InferRequest(str(document.get("id", "")), images, options, requested, binary)


def write_infer_response(
    request: InferRequest, model: str, tensors: Mapping[str, NDArray[Any]]
) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of the response. Raises ``BadRequest`` for an output that does not exist."""
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in (request.outputs or dict.fromkeys(tensors, request.binary)).items():
        if name not in tensors:
            raise BadRequest(f"There is no output {name[:60]!r}; there are {', '.join(tensors)}.")
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


def _split_files(data: Any, max_images: int) -> tuple[bytes, ...]:
    files: list[bytes] = []
    if isinstance(data, bytes):
        offset = 0
        while offset < len(data) and len(files) <= max_images:
            if offset + 4 > len(data):
                raise BadRequest("The binary tensor `image` ends in the middle of an item.")
            (length,) = struct.unpack_from("<I", data, offset)
            files.append(data[offset + 4 : offset + 4 + length])
            offset += 4 + length
        if offset > len(data):
            raise BadRequest("The binary tensor `image` ends in the middle of an item.")
    else:
        try:
            files = [base64.b64decode(item, validate=True) for item in data]
        except (TypeError, binascii.Error, ValueError):
            raise BadRequest("In JSON the data of a BYTES `image` is a list of images in base64.") from None
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
        flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data, np.uint8)
        pixels = flat.reshape(height, width, 3)
    except (ValueError, TypeError, OverflowError):
        raise BadRequest("The data of `image` does not have its declared shape, or is not UINT8.") from None
    file = BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()
