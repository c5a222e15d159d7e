"""Content negotiation: whether a client asks for an image instead of JSON."""

from __future__ import annotations

from service.rendering.boxes import MEDIA_TYPES

MAX_ACCEPT = 1024  # characters of the header that are read; a browser sends about 150


def preferred_image_type(accept: str) -> str | None:
    """Return the image type that an ``Accept`` header prefers over JSON; None where the response is to be JSON."""
    best, best_quality = None, 0.0
    for entry in accept[:MAX_ACCEPT].split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
                if not 0 <= quality <= 1:  # nor is NaN
                    quality = 0.0
        if media_type == "image/*":
            media_type = "image/jpeg"
        if quality > best_quality and media_type in (*MEDIA_TYPES, "application/json", "*/*"):
            best, best_quality = media_type, quality
    return best if best in MEDIA_TYPES else None
