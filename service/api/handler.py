"""The steps of every image route around the inference.

A route reads the request, turns its options into ``DetectOptions``, infers, and writes the result:

    image_request = await handler.read_request(request, timeout_ms)     read and parse
    options = merge(query, image_request.options)
    result = await handler.infer(image_request, options.resolve(...))   while the client is connected
    body = await handler.write(image_request, ...)                      where it takes long: in a thread or a process
    return handler.respond(request, result, body)                       timings, log, metrics

``service/inference/pipeline.py`` lists the objects that carry an image from one step to the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response

from model.structures import DetectOptions, DetectorInfo
from service.api.auth import KeyRing
from service.api.body import is_raw, parse_body
from service.api.context import request_context
from service.api.options import check_regions
from service.api.request import ImageRequest, only_image, read_body, run_while_connected
from service.api.responses import add_timings, milliseconds, server_timing
from service.inference.limits import Budget, enforce_deadline
from service.inference.pipeline import ImageResult, Pipeline
from service.settings import Settings

T = TypeVar("T")

JSON = "application/json"


class ImageHandler:
    """The steps of an image route. There is one handler per app; the dependency ``Handler`` passes it to a route."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Handle requests with ``pipeline``. Raises ``SettingsError`` where the file of API keys cannot be used."""
        settings = pipeline.settings
        self.pipeline = pipeline
        self.keys = KeyRing(settings.api_keys_file, settings.max_inflight_per_key) if settings.api_keys_file else None
        self.body_budget = Budget(settings.max_bodies_bytes, lambda: pipeline.batcher.retry_after)

    @property
    def settings(self) -> Settings:
        """Return the app's settings."""
        return self.pipeline.settings

    @property
    def info(self) -> DetectorInfo:
        """Return the description of the detector that is served."""
        return self.pipeline.info

    async def read_request(self, request: Request, timeout_ms: int | None, *, raw: bool = False) -> ImageRequest:
        """Read the body and parse it.

        timeout_ms: from the header ``X-Request-Timeout-Ms``; None for the setting. raw: return the body as the one
        image, whatever its type, for the caller to parse. Raises a ``ServiceError``.
        """
        context, settings = request_context(request), self.settings
        deadline = context.arrived + (timeout_ms or settings.timeout_ms) / 1000
        assert context.arriving_body is not None  # every POST route is behind the admission
        take = context.exit_stack.enter_context(self.body_budget.reserve())
        async with enforce_deadline(deadline, "while the body was arriving; send it faster"):
            async with context.arriving_body.read():
                body = await read_body(request, settings.max_body_bytes, settings.body_seconds, take)
            received = time.monotonic()
            content_type = request.headers.get("content-type", "")
            if raw or is_raw(content_type):  # nothing to parse, so no wait for a thread
                return ImageRequest(request, (body,), {}, deadline, received)
            images, options = await self.pipeline.run_in_thread(parse_body, body, content_type)
        return ImageRequest(request, images, options, deadline, received)

    async def infer(
        self,
        image_request: ImageRequest,
        options: DetectOptions,
        *,
        full_resolution: bool = False,
        check_size: Callable[[int, int], object] | None = None,
    ) -> ImageResult:
        """Run the detector on the request's one image, while its client is connected.

        full_resolution: the response shows the image, and so needs all its pixels; it counts among the images in
        progress until the response is written. check_size: called with width and height before the image is queued; it
        may raise. Raises a ``ServiceError``.
        """
        work = self.infer_image(image_request, only_image(image_request), options, full_resolution, check_size)
        return await run_while_connected(image_request.request, work)

    async def for_each_image(
        self, image_request: ImageRequest, work: Callable[[bytes], Coroutine[Any, Any, T]]
    ) -> list[T]:
        """Return the results of ``work``, which calls ``infer_image``, for each image in order, as ``infer`` does.

        The first exception ends the request, and the other images are dropped.
        """
        # One batch's worth at once keeps a device busy; more would only take memory, and slots from other requests.
        semaphore = asyncio.Semaphore(min(self.settings.max_batch, self.settings.max_queue))

        async def work_with_limit(image: bytes) -> T:
            async with semaphore:
                return await work(image)

        async def gather() -> list[T]:
            tasks = [asyncio.ensure_future(work_with_limit(image)) for image in image_request.images]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        return await run_while_connected(image_request.request, gather())

    async def infer_image(
        self,
        image_request: ImageRequest,
        image: bytes,
        options: DetectOptions,
        full_resolution: bool = False,
        check_size: Callable[[int, int], object] | None = None,
    ) -> ImageResult:
        """Run the detector on one of the request's images; as ``infer``, but for use inside ``for_each_image``."""

        def check(width: int, height: int) -> None:
            check_regions(options.regions or (), width, height)
            if check_size is not None:
                check_size(width, height)

        return await self.pipeline.infer(
            image,
            options,
            deadline=image_request.deadline,
            received=image_request.received,
            keep=request_context(image_request.request).exit_stack if full_resolution else None,
            check_size=check,
        )

    async def write(self, image_request: ImageRequest, work: Coroutine[Any, Any, bytes]) -> bytes:
        """Return the body that ``work`` writes or draws, before the deadline and while the client is connected."""
        async with enforce_deadline(image_request.deadline, "while the response was being written; ask for less"):
            return await run_while_connected(image_request.request, work)

    def record_timings(self, result: ImageResult) -> dict[str, float]:
        """Return the milliseconds by stage of an image whose response is written, and count it in the metrics.

        ``serialize`` is all the time since the device finished, so that the stages add up to the total.
        """
        total = time.monotonic() - result.received
        seconds = result.seconds | {"serialize": max(0.0, total - sum(result.seconds.values())), "total": total}
        detections, proposals = result.detections, result.detections.proposals
        self.pipeline.metrics.observe_image(seconds, len(detections), None if proposals is None else len(proposals))
        return milliseconds(seconds)

    def respond(self, request: Request, result: ImageResult, body: bytes, media_type: str = JSON) -> Response:
        """Return ``body`` as the response, with the timings in its header and, where it is a JSON object, in it."""
        timings = self.record_timings(result)
        if media_type == JSON:
            body = add_timings(body, timings)
        request_context(request).log_fields.update(batch_size=result.detections.batch_size, timings_ms=timings)
        return Response(body, media_type=media_type, headers={"Server-Timing": server_timing(timings)})
