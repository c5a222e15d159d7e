"""The one thing in an image's metadata that changes how it is shown: its orientation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

ORIENTATION = 0x0112  # EXIF 2.32, tag 274
MAX_EXIF_BYTES = 2**16  # an Exif segment of a JPEG holds no more
_KEYS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")


def read_orientation(info: Mapping[Any, Any]) -> int:
    """Return the orientation, 1 to 8, of an image with that ``info``, by Pillow's names; 1 where none is valid."""
    kept = {key: info[key] for key in _KEYS if info.get(key)}
    if not kept:
        return 1
    if isinstance(kept.get("exif"), bytes):
        kept["exif"] = kept["exif"][:MAX_EXIF_BYTES]
    probe = Image.new("1", (1, 1))
    probe.info.update(kept)
    try:
        value = int(probe.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata beside undamaged pixels: the image is shown as stored
        return 1
    return value if 1 <= value <= 8 else 1
