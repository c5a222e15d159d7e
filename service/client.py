"""A client of the service, for programs: it waits where the service asks it to, and gives up when the time is over.

    with Client("http://localhost:8000") as client:
        found = client.detect("street.jpg", score_threshold=0.5)
        print(found.labels, found.boxes)

``AsyncClient`` is the same with ``await``, and sees to many pictures at once (``detect_many``). Both keep their
connections. Detection changes nothing on the server, so whatever got lost on the way may be asked for again. Nothing
here needs torch.
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

Source = bytes | str | Path  # a picture's bytes, or where they are
Box = tuple[float, float, float, float]


class DetectError(Exception):
    """There is no answer, and asking again will not help, or not in time.

    status: the HTTP status; None where nothing was heard. code: the service's word for it, for example ``bad_image``.
    """

    def __init__(self, detail: str, *, status: int | None = None, code: str = "", request_id: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.request_id = request_id


@dataclass(frozen=True)
class Found:
    """What the service found in one picture, by falling score: entry i of each tuple is detection i.

    boxes: four numbers each, in the frame that was asked for, by default x1, y1, x2, y2 in pixels. proposals: the lists
    of ``POST /proposals`` by name, where some were asked for. timings_ms: by stage. tries: how often it was asked.
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
    def from_json(cls, answer: Mapping[str, Any], tries: int = 1) -> Found:
        """The body of ``POST /detect``."""
        return cls(
            request_id=answer["request_id"],
            model=answer["model"],
            width=answer["image"]["width"],
            height=answer["image"]["height"],
            boxes=tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in answer["boxes"]),
            scores=tuple(answer["scores"]),
            labels=tuple(answer["labels"]),
            class_ids=tuple(answer["class_ids"]),
            batch_size=answer["batch_size"],
            timings_ms=answer["timings_ms"],
            proposals=answer.get("proposals"),
            tries=tries,
        )


@dataclass
class Patience:
    """How long one picture is worth waiting for. It does no I/O: both clients ask it what to do next.

    seconds: for all tries together. most_tries: at least 1.
    """

    seconds: float
    most_tries: int
    tries: int = 0
    _began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the deadline, not negative."""
        return max(0.0, self._began + self.seconds - time.monotonic())

    def after(self, outcome: httpx.Response | httpx.TransportError) -> float:
        """Seconds to wait before the next try. Raises ``DetectError`` where there should be none."""
        if isinstance(outcome, httpx.Response):
            error = refusal(outcome)
            if outcome.status_code not in (429, 503):
                raise error
            wait = _retry_after(outcome)
        else:
            error = DetectError(f"The service could not be reached ({str(outcome) or type(outcome).__name__}).")
            if isinstance(outcome, httpx.UnsupportedProtocol):  # a mistake in the URL, which no waiting mends
                raise error
            wait = min(5.0, 0.1 * 2 ** (self.tries - 1))
        wait *= random.uniform(1.0, 1.25)  # or all who were turned away together come back together
        if self.tries >= self.most_tries or wait >= self.left:
            raise error
        return wait


class _Asking:
    """What the two clients share: how a picture is asked about."""

    def __init__(self, url: str, api_key: str | None, timeout: float, tries: int) -> None:
        self._url = f"{url.rstrip('/')}/detect"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = timeout
        self._tries = tries

    def _patience(self, timeout: float | None) -> Patience:
        return Patience(self._timeout if timeout is None else timeout, self._tries)

    def _request(self, patience: Patience, options: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of ``httpx``'s ``post`` for one more try."""
        patience.tries += 1
        left = max(0.001, patience.left)
        return {
            "url": self._url,
            "params": {name: value for name, value in options.items() if value is not None},
            "headers": {
                **self._headers,
                "Content-Type": "application/octet-stream",
                "X-Request-Timeout-Ms": str(max(1, int(left * 1000))),  # the service drops what comes too late
            },
            # The service says 504 at the deadline; a moment more, so that its sentence is heard.
            "timeout": left + 1.0,
        }


class Client(_Asking):
    """Asks one picture at a time. A context manager; may be shared between threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        tries: int = 8,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """url: of the service. timeout: seconds for a picture, with all tries. transport: httpx's own by default."""
        super().__init__(url, api_key, timeout, tries)
        self._http = httpx.Client(transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def detect(self, picture: Source, *, timeout: float | None = None, **options: Any) -> Found:
        """Detect objects in ``picture``, options as of ``/detect``. Raises ``DetectError``; for a path also OSError."""
        body = _read(picture)
        patience = self._patience(timeout)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.post(content=body, **self._request(patience, options))
                if outcome.status_code == 200:
                    return Found.from_json(outcome.json(), patience.tries)
            except httpx.TransportError as error:
                outcome = error
            time.sleep(patience.after(outcome))


class AsyncClient(_Asking):
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
        """As of ``Client``."""
        super().__init__(url, api_key, timeout, tries)
        self._http = httpx.AsyncClient(transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the connections go."""
        await self._http.aclose()

    async def detect(self, picture: Source, *, timeout: float | None = None, **options: Any) -> Found:
        """As of ``Client``."""
        body = picture if isinstance(picture, bytes) else await asyncio.to_thread(_read, picture)
        patience = self._patience(timeout)
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.post(content=body, **self._request(patience, options))
                if outcome.status_code == 200:
                    return Found.from_json(outcome.json(), patience.tries)
            except httpx.TransportError as error:
                outcome = error
            await asyncio.sleep(patience.after(outcome))

    async def detect_many(
        self, paths: Iterable[Path], *, at_once: int = 8, **options: Any
    ) -> AsyncIterator[tuple[Path, Found | DetectError | OSError]]:
        """Find objects in many files, ``at_once`` at a time: each with what became of it, in the order they are done.

        A file is read only when its turn comes. Ending the iteration early drops what is under way.
        """
        waiting = iter(paths)
        under_way: dict[asyncio.Task[Found], Path] = {}
        try:
            while True:
                while len(under_way) < at_once and (path := next(waiting, None)) is not None:
                    under_way[asyncio.create_task(self.detect(path, **options))] = path
                if not under_way:
                    return
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    path = under_way.pop(task)
                    try:
                        yield path, task.result()
                    except (DetectError, OSError) as error:
                        yield path, error
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)


def refusal(response: httpx.Response) -> DetectError:
    """What a response other than 200 says, whoever sent it: the service, or a proxy before it."""
    try:
        problem = response.json()
        detail, code, request_id = str(problem["detail"]), str(problem["code"]), str(problem["request_id"])
    except (ValueError, LookupError, TypeError):
        detail, code, request_id = f"Something answered {response.status_code} {response.reason_phrase}.", "", ""
    return DetectError(detail, status=response.status_code, code=code, request_id=request_id)


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 1 where the header is missing or holds a date."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 1.0


def _read(picture: Source) -> bytes:
    return picture if isinstance(picture, bytes) else Path(picture).read_bytes()
