"""Read a request: its body within limits of size and time, and the end of its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.api.numbers import whole_number
from service.errors import BadOption, ClientGone, SlowBody, TooLarge

T = TypeVar("T")


@dataclass(frozen=True)
class ImageRequest:
    """A request whose body is read and parsed.

    images: the bytes of each, in order. options: the other fields of the body by name, not yet validated.
    deadline, received (when the body was all here): ``time.monotonic`` seconds.
    """

    request: Request
    images: tuple[bytes, ...]
    options: Mapping[str, Any]
    deadline: float
    received: float


def only_image(image_request: ImageRequest) -> bytes:
    """Return the one image of a request; raises ``BadOption`` for several."""
    if len(image_request.images) != 1:
        raise BadOption(
            f"There are {len(image_request.images)} images; send one, or use POST /detect/batch.",
            fields=[{"name": "image", "problem": "one image only"}],
        )
    return image_request.images[0]


async def read_body(request: Request, limit: int, seconds: float, take: Callable[[int], None]) -> bytes:
    """Read the whole body, at most ``limit`` bytes, within ``seconds``.

    take: called with the length of every chunk that is stored; it may raise. The bytes are counted as they arrive.
    A body that is over the limit, by its announced length or as it streams, is read to its end where that is not twice
    the limit: most clients read a response only once they have sent it all. One that is longer, or whose client waits
    for ``100 Continue``, is not read further. Raises ``TooLarge``, ``SlowBody``, ``ClientGone``.
    """
    announced = whole_number(request.headers.get("content-length", ""), 2 * limit + 1) or 0
    waits = request.headers.get("expect", "").lower() == "100-continue"
    if announced > 2 * limit or (announced > limit and waits):
        raise _too_large(limit)
    try:
        async with asyncio.timeout(seconds):
            return await _read_chunks(request, limit, announced > limit, take)
    except TimeoutError:
        raise SlowBody(f"The body took over {seconds:g} s to arrive; send it faster, or a smaller one.") from None


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` while the client is connected; raises ``ClientGone`` and cancels it when the client disconnects.

    The request's body must have been read: only then is the next message from the client its disconnection.
    """
    running = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise ClientGone("The client closed the connection before its response.")
    finally:
        for task in (running, watching):
            task.cancel()
        await asyncio.gather(running, watching, return_exceptions=True)


async def _read_chunks(request: Request, limit: int, too_large: bool, take: Callable[[int], None]) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > 2 * limit:
                break
            if too_large := too_large or size > limit:
                chunks.clear()
            else:
                take(len(chunk))
                chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGone("The client closed the connection while its body was being read.") from None
    if too_large:
        raise _too_large(limit)
    return b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is over {limit} bytes; send a smaller image, or compress it more.")


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
