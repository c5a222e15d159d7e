"""The image formats that the service reads, known by their first bytes."""

from __future__ import annotations

SUPPORTED = "JPEG, PNG, WebP, BMP, TIFF or GIF"


def sniff_format(data: bytes) -> str | None:
    """Return Pillow's name of the format that ``data`` begins like, or None."""
    head = data[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\x00", b"MM\x00*")):
        return "TIFF"
    # Text may begin with "BM"; a bitmap's file header goes on with two reserved 16-bit zeros.
    if head.startswith(b"BM") and head[6:10] == b"\x00\x00\x00\x00":
        return "BMP"
    return None
