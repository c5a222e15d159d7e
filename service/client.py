"""A client of the service, for programs: it retries as the service allows, until a timeout.

    with Client("http://localhost:8000") as client:
        result = client.detect("street.jpg", score_threshold=0.5)
        print(result.labels, result.boxes)

``AsyncClient`` is the same with ``await``, and detects in many images at once (``detect_many``). Both keep their
connections open. Detection changes nothing on the server, so a lost request may be sent again. Torch is not needed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

ImageSource = bytes | str | Path  # an encoded image, or the path of one
Box = tuple[float, float, float, float]


class DetectError(Exception):
    """There is no result, and no retry would bring one in time.

    status: the HTTP status; None without a response. code: the service's name of the error, for example ``bad_image``.
    """

    def __init__(self, detail: str, *, status: int | None = None, code: str = "", request_id: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.request_id = request_id


@dataclass(frozen=True)
class DetectionResult:
    """The detections of one image, by falling score: entry i of each tuple belongs to detection i.

    boxes: four numbers each, in the frame that was requested, by default x1, y1, x2, y2 in pixels. proposals: the lists
    of ``POST /proposals`` by name, where proposals were requested. timings_ms: milliseconds by stage. tries: the number
    of requests that were sent.
    """

    request_id: str
    model: str
    width: int
    height: int
    boxes: tuple[Box, ...]
    scores: tuple[float, ...]
    labels: tuple[str, ...]
    class_ids: tuple[int, ...]
    batch_size: int
    timings_ms: Mapping[str, float]
    proposals: Mapping[str, list[Any]] | None = None
    tries: int = 1

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_json(cls, body: Mapping[str, Any], tries: int = 1) -> DetectionResult:
        """Return the result that the response body of ``POST /detect`` holds."""
        return cls(
            request_id=body["request_id"],
            model=body["model"],
            width=body["image"]["width"],
            height=body["image"]["height"],
            boxes=tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in body["boxes"]),
            scores=tuple(body["scores"]),
            labels=tuple(body["labels"]),
            class_ids=tuple(body["class_ids"]),
            batch_size=body["batch_size"],
            timings_ms=body["timings_ms"],
            proposals=body.get("proposals"),
            tries=tries,
        )


@dataclass
class RetryPolicy:
    """Decide whether and when the request for one image is sent again. It does no I/O, so both clients use it.

    timeout: seconds for all tries together. max_tries: at least 1. tries: those begun so far.
    """

    timeout: float
    max_tries: int
    tries: int = 0
    _start: float = field(default_factory=time.monotonic)

    @property
    def remaining(self) -> float:
        """Return the seconds until the deadline, not negative."""
        return max(0.0, self._start + self.timeout - time.monotonic())

    def delay_after(self, outcome: httpx.Response | httpx.TransportError) -> float:
        """Return the seconds to wait before the next try; raise ``DetectError`` where there should be none."""
        if isinstance(outcome, httpx.Response):
            error = error_of(outcome)
            if outcome.status_code not in (429, 503):
                raise error
            delay = _retry_after(outcome)
        else:
            error = DetectError(f"The service could not be reached ({str(outcome) or type(outcome).__name__}).")
            if isinstance(outcome, httpx.UnsupportedProtocol):  # a wrong URL, for which no retry succeeds
                raise error
            delay = min(5.0, 0.1 * 2 ** (self.tries - 1))
        delay *= random.uniform(1.0, 1.25)  # jitter: so that clients that were refused together do not retry together
        if self.tries >= self.max_tries or delay >= self.remaining:
            raise error
        return delay


class _BaseClient:
    """The part that both clients share: URL, headers, and the arguments of a request."""

    def __init__(self, url: str, api_key: str | None, timeout: float, tries: int) -> None:
        self._url = f"{url.rstrip('/')}/detect"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = timeout
        self._tries = tries

    def _retry_policy(self, timeout: float | None) -> RetryPolicy:
        return RetryPolicy(self._timeout if timeout is None else timeout, self._tries)

    def _next_request(self, policy: RetryPolicy, options: Mapping[str, Any]) -> dict[str, Any]:
        """Count one more try, and return its keyword arguments for ``httpx``'s ``post``."""
        policy.tries += 1
        remaining = max(0.001, policy.remaining)
        return {
            "url": self._url,
            "params": {name: value for name, value in options.items() if value is not None},
            "headers": {
                **self._headers,
                "Content-Type": "application/octet-stream",
                "X-Request-Timeout-Ms": str(max(1, int(remaining * 1000))),  # so that the service drops late results
            },
            # The service responds with 504 at the deadline; wait a little longer, to receive that response.
            "timeout": remaining + 1.0,
        }


class Client(_BaseClient):
    """A client that detects in one image at a time. A context manager; may be shared between threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        tries: int = 8,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Send requests to the service at ``url``.

        timeout: seconds for one image, with all tries. transport: httpx's default where None.
        """
        super().__init__(url, api_key, timeout, tries)
        self._http = httpx.Client(transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def detect(self, image: ImageSource, *, timeout: float | None = None, **options: Any) -> DetectionResult:
        """Detect objects in ``image``, with the options of ``POST /detect``.

        Raises ``DetectError``, and for a path also ``OSError``.
        """
        body = _read(image)
        policy = self._retry_policy(timeout)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.post(content=body, **self._next_request(policy, options))
                if outcome.status_code == 200:
                    return DetectionResult.from_json(outcome.json(), policy.tries)
            except httpx.TransportError as error:
                outcome = error
            time.sleep(policy.delay_after(outcome))


class AsyncClient(_BaseClient):
    """``Client`` for asyncio."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        tries: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Take the arguments of ``Client``."""
        super().__init__(url, api_key, timeout, tries)
        self._http = httpx.AsyncClient(transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def detect(self, image: ImageSource, *, timeout: float | None = None, **options: Any) -> DetectionResult:
        """Detect objects in ``image``, as ``Client.detect`` does."""
        body = image if isinstance(image, bytes) else await asyncio.to_thread(_read, image)
        policy = self._retry_policy(timeout)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.post(content=body, **self._next_request(policy, options))
                if outcome.status_code == 200:
                    return DetectionResult.from_json(outcome.json(), policy.tries)
            except httpx.TransportError as error:
                outcome = error
            await asyncio.sleep(policy.delay_after(outcome))

    async def detect_many(
        self, paths: Iterable[Path], *, at_once: int = 8, **options: Any
    ) -> AsyncIterator[tuple[Path, DetectionResult | DetectError | OSError]]:
        """Detect objects in many files, ``at_once`` at a time; yield each with its outcome, in the order of completion.

        A file is read only when its request begins. Ending the iteration early cancels the requests in progress.
        """
        waiting = iter(paths)
        tasks: dict[asyncio.Task[DetectionResult], Path] = {}
        try:
            while True:
                while len(tasks) < at_once and (path := next(waiting, None)) is not None:
                    tasks[asyncio.create_task(self.detect(path, **options))] = path
                if not tasks:
                    return
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    path = tasks.pop(task)
                    try:
                        yield path, task.result()
                    except (DetectError, OSError) as error:
                        yield path, error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def error_of(response: httpx.Response) -> DetectError:
    """Return the error of a response that is not 200, from the service or from a proxy in front of it."""
    try:
        problem = response.json()
        detail, code, request_id = str(problem["detail"]), str(problem["code"]), str(problem["request_id"])
    except (ValueError, LookupError, TypeError):
        detail, code, request_id = f"Something answered {response.status_code} {response.reason_phrase}.", "", ""
    return DetectError(detail, status=response.status_code, code=code, request_id=request_id)


def _retry_after(response: httpx.Response) -> float:
    """Return the header's seconds; 1 where it is missing or holds a date."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 1.0


def _read(image: ImageSource) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()
