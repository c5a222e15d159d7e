"""Check the directory of TIFF files (TIFF 6.0, section 2) before Pillow and libtiff read it.

Both make an object of each value, and room for each strip and tile, whatever the size of the image.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from PIL.TiffImagePlugin import TiffImageFile

from service.errors import BadImage

MAX_ENTRIES = 4096
MAX_PARTS = 100_000  # strips or tiles
MAX_VALUES = 1024  # of a tag that Pillow evaluates
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes, by type
_BYTES = (1, 2, 7)  # types that Pillow keeps as they are
_OFFSETS = (273, 324)
_EVALUATED = frozenset(
    (256, 257, 258, 259, 262, 266, 274, 277, 278, 282, 283, 284, 296, 317, 320, 322, 323, 330, 338, 339, 530)
) | frozenset((700, 34665, 34675, 34853, 40965, 0xBC01))
_DIRECTORIES = (34665, 34853, 40965)  # Exif's, GPS's and interoperability's


class TiffLayout(NamedTuple):
    """How the pixels are stored.

    parts: strips or tiles, in all planes. part_pixels: pixels of the largest of them, which a decoder holds at once,
    and which may be more than the image has. stored_pixels: pixels of all parts of a plane: parts may reach out of the
    image, and are decoded in full. turned: whether Pillow turns the image, in a copy.
    """

    parts: int
    part_pixels: int
    stored_pixels: int
    turned: bool


def check_directory(data: bytes) -> None:
    """Refuse, by ``BadImage``, a TIFF file whose first directory has more entries or values than any program writes.

    data: begins with a valid byte order.
    """
    order = "<" if data.startswith(b"II") else ">"
    if len(data) < 10:
        raise ValueError("truncated header")
    (offset,) = struct.unpack_from(order + "I", data, 4)
    if offset + 2 > len(data):
        raise ValueError("truncated header")
    (entries,) = struct.unpack_from(order + "H", data, offset)
    if entries > MAX_ENTRIES:
        raise BadImage("The image has more tags than any program writes; save it again.")
    for start in range(offset + 2, min(offset + 2 + 12 * entries, len(data) - 11), 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, start)
        most = MAX_PARTS if tag in _OFFSETS else MAX_VALUES
        if kind not in _BYTES and count > most and (tag in _OFFSETS or tag in _EVALUATED):
            raise BadImage("The image has more values in a tag than any program writes; save it again.")


def read_layout(image: TiffImageFile) -> TiffLayout:
    """Return how the pixels of ``image`` are stored; raises ``BadImage`` for more parts than any program writes."""
    tags = image.tag_v2
    width, height = tags[256], tags[257]
    if 322 in tags or 323 in tags:
        part_width, part_height = tags.get(322, width), tags.get(323, height)
    else:
        part_width, part_height = width, min(height, tags.get(278, height))
    if not all(isinstance(side, int) and side > 0 for side in (part_width, part_height)):
        raise ValueError("invalid tile dimensions")
    planes = tags.get(277, 1) if tags.get(284, 1) == 2 else 1
    parts_of_plane = -(-width // part_width) * -(-height // part_height)
    parts = parts_of_plane * planes
    if parts > MAX_PARTS:
        raise BadImage("The image has more strips or tiles than any program writes; save it again.")
    part_pixels = part_width * part_height
    return TiffLayout(parts, part_pixels, parts_of_plane * part_pixels, tags.get(274, 1) != 1)


def take_orientation(image: TiffImageFile) -> int:
    """Return the orientation that Pillow will not apply itself, being in XMP; and keep Pillow from other directories.

    After decoding it would make an object of each of their values.
    """
    exif = image.getexif()
    for tag in _DIRECTORIES:
        exif.pop(tag, None)
    if 274 in image.tag_v2 or 274 not in exif:
        return 1
    return int(exif.pop(274))
