"""The option ``regions``: a client's own boxes for the RoI head, instead of the RPN's proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, WithJsonSchema

from model.structures import Box

MAX_REGIONS = 2000  # the number of proposals of Selective Search in Fast R-CNN
MAX_COORDINATE = 1e9  # pixels, on either side of 0: areas and products with an image's size stay finite in float32


def _parse(value: Any) -> tuple[Box, ...] | None:
    """Parse a list of boxes, or the JSON text of one: a form and a query have no lists. Raises ``ValueError``."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"must be JSON, such as [[10, 20, 110, 220]] ({error})") from None
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) > MAX_REGIONS:
        raise ValueError(f"must be a list of at most {MAX_REGIONS} boxes, such as [[10, 20, 110, 220]]")
    return tuple(_box(number, row) for number, row in enumerate(value))


def _box(number: int, row: Any) -> Box:
    are_numbers = isinstance(row, list | tuple) and len(row) == 4 and all(type(side) in (int, float) for side in row)
    if not are_numbers or not all(abs(side) <= MAX_COORDINATE for side in row):  # which no NaN is
        raise ValueError(
            f"region {number} must be four numbers, [x1, y1, x2, y2], none beyond {MAX_COORDINATE:.0f} pixels"
        )
    x1, y1, x2, y2 = map(float, row)
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"region {number} has no area; x2 must be above x1 and y2 above y1")
    return x1, y1, x2, y2


Regions = Annotated[
    Any,
    AfterValidator(_parse),
    WithJsonSchema(
        {
            "type": "array",
            "maxItems": MAX_REGIONS,
            "items": {
                "type": "array",
                "items": {"type": "number", "minimum": -MAX_COORDINATE, "maximum": MAX_COORDINATE},
                "minItems": 4,
                "maxItems": 4,
            },
        }
    ),
]


def first_outside(regions: Sequence[Box], width: int, height: int) -> int | None:
    """Return the index of the first region that contains no pixel of an image of that size, or None."""
    for number, (x1, y1, x2, y2) in enumerate(regions):
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            return number
    return None
