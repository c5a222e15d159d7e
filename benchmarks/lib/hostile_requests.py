"""Requests that are small or malformed and expensive to answer, by kind.

``KINDS`` has a function for each kind; ``cases`` yields those of some kinds, or the short form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from benchmarks.lib import hostile_images as images
from benchmarks.lib.hostile_bodies import compat, multipart, options
from benchmarks.lib.hostile_case import Case, head, photograph, post, same_for_all, small
from benchmarks.lib.hostile_http import headers, http
from benchmarks.lib.raw_http import Exchange, Part


def drawing() -> Iterator[Case]:
    """Yield images that are large to draw, and clients that leave meanwhile."""
    case = partial(same_for_all, "drawing")
    largest = lru_cache(partial(images.plain, "JPEG"))
    fine = lru_cache(partial(images.noise, "JPEG", 4000, 3000, quality=70))

    def draw(path: str, make: Callable[[], bytes], media_type: bytes, **options: Any) -> Callable[[], bytes]:
        return lambda: post(path, make(), b"Accept: " + media_type, **options)

    for media_type in (b"image/png", b"image/jpeg"):
        yield case(f"64 megapixels as {media_type.decode()}", draw("/detect", largest, media_type))
        yield case(f"noise of 12 megapixels as {media_type.decode()}", draw("/detect", fine, media_type))
        yield case(
            f"heat maps of 64 megapixels as {media_type.decode()}",
            draw("/proposals?view=objectness", largest, media_type),
        )
    yield case(
        "1,000 detections drawn",
        draw("/detect?score_threshold=0&max_detections=1000&nms_threshold=1", photograph, b"image/png"),
    )
    yield case(
        "1,000 detections on 12 megapixels",
        draw("/detect?score_threshold=0&max_detections=1000&nms_threshold=1", fine, b"image/jpeg"),
    )
    yield case("10,000 proposals drawn", draw("/proposals?limit=10000&stage=pre_nms", fine, b"image/png"))
    yield case("an image of 64 million x 1, drawn", draw("/detect", images.PNG["a row of 64 million"], b"image/png"))
    yield case(
        "heat maps of 1 x 64 million",
        draw("/proposals?view=objectness", images.PNG["a column of 64 million"], b"image/png"),
    )
    yield case("64 megapixels drawn, 8 at once", draw("/detect", largest, b"image/png"), connections=8, processor=20)
    yield case(
        "heat maps, 8 at once", draw("/proposals?view=objectness", fine, b"image/png"), connections=8, processor=20
    )
    yield case(
        "64 megapixels drawn for clients that leave",
        draw("/detect", largest, b"image/png"),
        connections=8,
        leave=0.5,
        silent=True,
        processor=20,
    )
    yield case(
        "drawn with a deadline of 300 ms",
        draw("/detect", largest, b"image/png", timeout_ms=300),
        deadline=0.3,
        connections=4,
        processor=6,
    )
    yield case(
        "a page of drawn images not read",
        draw("/detect", fine, b"image/png"),
        read=False,
        silent=True,
        closed_within=45.0,
        connections=4,
        processor=20,
    )


def deadlines() -> Iterator[Case]:
    """Yield deadlines of a millisecond, and clients that leave."""
    case = partial(same_for_all, "deadlines")
    large = lru_cache(lambda: images.LEGITIMATE["a WebP of 12 megapixels"]())

    def tiny(body: Callable[[], bytes], path: str = "/detect") -> Callable[[], bytes]:
        return lambda: post(path, body(), timeout_ms=1)

    yield case("1 ms, 50 times", tiny(photograph), repeats=50, deadline=0.001, processor=5, short=True)
    yield case("1 ms for 12 megapixels, 50 times", tiny(large), repeats=50, deadline=0.001, processor=15)
    yield case("1 ms for 12 megapixels, 20 at once", tiny(large), connections=20, deadline=0.001, processor=10)
    yield case(
        "50 ms for 12 megapixels, 30 times",
        lambda: post("/detect", large(), timeout_ms=50),
        repeats=30,
        deadline=0.05,
        processor=20,
    )
    yield case(
        "50 ms for WebP of 8000 x 8000, 10 at once",
        lambda: post("/detect", images.WEBP["lossless, 8000 x 8000"](), timeout_ms=50),
        connections=10,
        deadline=0.05,
        processor=5,
    )
    yield case(
        "50 clients that leave after sending",
        lambda: post("/detect", photograph()),
        connections=50,
        leave=0.0,
        silent=True,
        processor=15,
        short=True,
    )
    yield case(
        "50 clients that leave after 12 megapixels",
        lambda: post("/detect", large()),
        connections=50,
        leave=0.0,
        silent=True,
        processor=60,
    )
    yield case(
        "50 clients that leave half way",
        lambda: [head("/detect", len(photograph())), photograph()[:20_000]],
        connections=50,
        leave=0.0,
        silent=True,
    )
    yield case(
        "50 clients that leave after 100 ms",
        lambda: post("/detect", large(), b"Accept: image/png"),
        connections=50,
        leave=0.1,
        silent=True,
        processor=60,
    )
    yield case(
        "20 clients with a slow image each", lambda: post("/detect", images.TIFF["LZW"]()), connections=20, processor=20
    )
    yield case(
        "20 clients with runs of one",
        lambda: post("/detect", images.BMP["runs of 8 bits: a pixel in each of 8,000 rows"]()),
        connections=20,
        processor=8,
    )
    yield case("no deadline named, LZW", lambda: post("/detect", images.TIFF["LZW"](), timeout_ms=None), deadline=30)
    yield case(
        "a deadline of an hour, 20 slow images",
        lambda: post("/detect", images.BMP["runs of 8 bits: moves down"](), timeout_ms=3_600_000),
        connections=20,
        processor=8,
    )


def exchanged() -> Iterator[Case]:
    """Yield images of distinct sizes, whose answers must not be exchanged, lost or doubled."""

    def width(number: int, index: int = 0) -> int:
        return 60 + 10 * number + index

    def one(number: int) -> Sequence[Part]:
        return [post("/detect", small(width(number)), timeout_ms=30_000)]

    def several(number: int) -> Sequence[Part]:
        bodies = [small(width(number, index)) for index in range(8)]
        requests = [post("/detect", body, close=index == 7, timeout_ms=30_000) for index, body in enumerate(bodies)]
        return [b"".join(requests)]

    def in_pieces(number: int) -> Sequence[Part]:
        data = several(number)[0]
        assert isinstance(data, bytes)
        return [piece for start in range(0, len(data), 99) for piece in (data[start : start + 99], 0.001)]

    def check(exchanges: Sequence[Exchange], count: int) -> str:
        for number, exchange in enumerate(exchanges):
            sizes = [json.loads(answer.body)["image"]["width"] for answer in exchange.answers if answer.status == 200]
            if sizes != [width(number, index) for index in range(count)]:
                return "answers lost, doubled or exchanged"
        return ""

    common = {"deadline": 30.0, "processor": 60.0}
    yield Case(
        "exchange",
        "20 images at once",
        one,
        connections=20,
        answers=1,
        check=partial(check, count=1),
        short=True,
        **common,
    )
    yield Case(
        "exchange",
        "8 images at once on 5 connections",
        several,
        connections=5,
        answers=8,
        check=partial(check, count=8),
        short=True,
        **common,
    )
    yield Case(
        "exchange",
        "the same in pieces of 99 bytes",
        in_pieces,
        connections=5,
        answers=8,
        check=partial(check, count=8),
        **common,
    )


def legitimate() -> Iterator[Case]:
    """Yield large images that must still be accepted."""
    for name, make in images.LEGITIMATE.items():
        parts = partial(lambda make: post("/detect", make(), timeout_ms=30_000), make)
        yield same_for_all("legitimate", name, parts, statuses=frozenset({200}), deadline=30.0)


_SHORT_IMAGES = {
    ("bmp", "runs of 8 bits: a row of 64 million"),
    ("webp", "an animation on 8000 x 8000 with one frame of 1 x 1"),
    ("tiff", "16 x 16 in one tile of 16384 x 32768"),
    ("png", "a compressed text of 80 MB"),
    ("gif", "a comment of 10 MB"),
    ("jpeg", "80,000 EXIF segments"),
}


def _images(kind: str) -> Iterator[Case]:
    for name, make in images.CASES[kind].items():
        yield same_for_all(
            kind,
            name,
            partial(lambda make: post("/detect", make(), kind=f"image/{kind}"), make),
            short=(kind, name) in _SHORT_IMAGES,
        )


KINDS: Mapping[str, Callable[[], Iterable[Case]]] = {
    "options": options,
    "headers": headers,
    "http": http,
    **{kind: partial(_images, kind) for kind in images.CASES},
    "drawing": drawing,
    "compat": compat,
    "multipart": multipart,
    "deadlines": deadlines,
    "exchange": exchanged,
    "legitimate": legitimate,
}


def cases(kinds: Iterable[str] = KINDS, short: bool = False) -> Iterator[Case]:
    """Yield the cases of those kinds, or those of them that are quick and tell most."""
    for kind in kinds:
        for case in KINDS[kind]():
            if case.short or not short:
                yield case
