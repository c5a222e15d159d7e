"""Send random files to the processes that decode, and random bytes to the HTTP front; find what they must never do.

    python -m benchmarks.serving.fuzz images --cases 100000 --seconds 600 --seed 1
    python -m benchmarks.serving.fuzz http --cases 20000 --seconds 600 --seed 1
    python -m benchmarks.serving.fuzz http --url http://127.0.0.1:8000    # a running service instead of its own

images: valid files of every format with mutations that know the format. Each ends as an image or as a ``ServiceError``,
in time, and after each hundred a good image is decoded.

http: one to eight requests of every kind of body and framing, with mutations, in random pieces. No status from 500 on,
no error as plain text, nothing that is no response, no connection that is neither answered nor closed; after each
hundred a good request gets 200, and no connection is left open.

Ends with 1 and prints what failed, with the seed and the number of each case: ``--seed S --only N`` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.lib import hostile_case as requests
from benchmarks.lib import hostile_images as images
from benchmarks.lib.mutations import mutated_files
from benchmarks.lib.raw_http import Address, Exchange, Part, exchange

BATCH = 100
AT_ONCE = 32
MAX_PIXELS = 64_000_000
# A file may take so long to be refused or decoded: the deadline, and a second for a busy machine.
DEADLINE_SECONDS = 5.0
_QUIET = 0.05

Decode = Callable[[bytes], Awaitable[tuple[Any, tuple[int, int]]]]  # returns pixels [h, w, 3] and (height, width)


@dataclass
class Report:
    """What became of the cases. outcomes: how many had which. failures: each with the number of its case."""

    seed: int
    cases: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def fail(self, number: int, what: str) -> None:
        """Note that case ``number`` failed."""
        self.failures.append(f"seed {self.seed}, case {number}: {what}")

    def print(self) -> None:
        """Print the report."""
        outcomes = ", ".join(f"{count} x {outcome}" for outcome, count in self.outcomes.most_common())
        print(f"{self.cases} cases in {self.seconds:.1f} s, the slowest {self.slowest_s:.2f} s: {outcomes}")
        print("\n".join(self.failures[:50]) or "nothing failed")


# -------------------------------------------------------------------------------------------------------------- images
async def fuzz_images(decode: Decode, *, cases: int, seed: int, seconds: float, only: int | None = None) -> Report:
    """Decode mutated files until ``cases`` or ``seconds`` are over. only: run just the case of that number."""
    from service.errors import ServiceError

    report, started = Report(seed), time.monotonic()
    for number, (format, data) in enumerate(mutated_files(random.Random(seed))):
        if number >= cases or time.monotonic() - started > seconds:
            break
        if only is not None and number != only:
            continue
        began = time.monotonic()
        try:
            pixels, size = await decode(data)
            outcome = "image"
            if (
                pixels.ndim != 3
                or pixels.shape[2] != 3
                or not (size[0] >= pixels.shape[0] and size[1] >= pixels.shape[1])
            ):
                report.fail(number, f"{format}: pixels {pixels.shape} of an image of {size}")
        except ServiceError as error:
            outcome = str(error.status)
            if error.status >= 500 and error.status != 504:
                report.fail(number, f"{format}, {len(data)} bytes: {error.status}, {error}")
        except Exception as error:
            outcome = type(error).__name__
            report.fail(number, f"{format}, {len(data)} bytes: {error!r}")
        took = time.monotonic() - began
        if took > DEADLINE_SECONDS + 1:
            report.fail(number, f"{format}, {len(data)} bytes: {took:.1f} s, {outcome}")
        report.cases, report.slowest_s = report.cases + 1, max(report.slowest_s, took)
        report.outcomes[outcome] += 1
        if number % BATCH == BATCH - 1:
            await _decode_good_image(decode, report, number)
    await _decode_good_image(decode, report, report.cases)
    report.seconds = time.monotonic() - started
    return report


async def _decode_good_image(decode: Decode, report: Report, number: int) -> None:
    width = 50 + number % 100
    try:
        pixels, size = await decode(requests.small(width, 40))
    except Exception as error:
        report.fail(number, f"the good image after it: {error!r}")
        return
    if size != (40, width) or tuple(pixels[0, 0]) != (200, 30, 30):
        report.fail(number, f"the good image after it, {width} x 40, became {size} with {pixels[0, 0]}")


# ---------------------------------------------------------------------------------------------------------------- HTTP
_METHODS = (b"POST",) * 30 + tuple(b"GET GET PUT DELETE OPTIONS PATCH TRACE CONNECT BREW".split())
_VERSIONS = (b"HTTP/1.1",) * 30 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.9")
PATHS = b"""
/detect /detect /detect /detect /detect /detect /detect /detect /detect /detect /detect /detect
/detect/batch /proposals /explain /livez /readyz /metrics /model / /web/app.js /nowhere /docs
/openapi.json /v1/vision/detection /huggingface/object-detection /v2 /v2/models/lite-voc20/infer /v2/models/fake/infer
* http://x/detect //detect /%00 /detect?classes=1&x=%zz /detect?regions=[[0,0,9,9]] /proposals?view=objectness&limit=3
/detect?score_threshold=0&max_detections=5&box_format=xywh
""".split()
_NOISE = (
    *b"""Accept: image/png
Accept: */*;q=0.1, image/jpeg
Accept: ,;=
X-Request-ID: an-id
X-Request-Timeout-Ms: 20000
X-Request-Timeout-Ms: none
Authorization: Bearer x
Expect: 100-continue
Upgrade: h2c
Upgrade: websocket
Connection: Upgrade
Connection: keep-alive
Connection: ,,
TE: trailers
Trailer: a
Host: y
Content-Encoding: gzip
Range: bytes=0-1
X:
Content-Length: 3
Transfer-Encoding: chunked
Transfer-Encoding: gzip
Keep-Alive: timeout=1""".splitlines(),
    b"X-API-Key: " + requests.KEY.encode(),
    b"X-Request-ID: \xff\x01",
    b"Cookie: " + b"a" * 500,
    b"A" * 300 + b": 1",
)
_LENGTHS = b"0 -1 +1 1,1 x 999999999999999999999999999999".split()
_CHARACTERS = (b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b"\xff", b"ffffffff", b"\r\n\r\n", b"0\r\n\r\n")
_INSERTED = (*_CHARACTERS, b"HTTP/1.1", b"GET / HTTP/1.1\r\n\r\n")


def _bodies() -> list[tuple[bytes, bytes]]:
    """Return media types and bodies, valid and not."""
    image = requests.small()
    text = base64.b64encode(image)
    documents = (
        b'{"image":"%b"}' % text,
        b'{"image":"%b","classes":["cat"],"regions":[[0,0,9,9]]}' % text,
        b'{"image":"%b","boxes":[[1,1,20,20]],"labels":[null]}' % text,
        b'{"inputs":"%b"}' % text,
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["%b"]}]}' % text,
        b'{"image":"%b"' % text,
        b"[" * 500,
        b"null",
        b'{"image":null,"x":{"y":[1,2,{}]}}',
    )
    forms = (
        requests.form(("image", image)),
        requests.form(("image", image), ("classes", b"1"), ("regions", b"[[0,0,5,5]]")),
        requests.form(("image", image), ("image", image)),
        requests.form(("a", b"b"), end=b""),
        b"--b\r\n\r\n",
    )
    files = (image, images.noise("JPEG"), b"", b"hello")
    return [
        *[(b"image/png", image)] * 20,  # what is valid is as frequent as all the rest
        *((media_type, file) for file in files for media_type in (b"image/png", b"", b"text/plain")),
        *((b"application/json", document) for document in documents),
        *((b"multipart/form-data; boundary=b", form) for form in forms),
        (b"multipart/form-data", b"--b--"),
        (b"application/json; charset=utf-16", b"\xff\xfe{\0}\0"),
    ]


def random_streams(rng: random.Random, paths: Sequence[bytes] = tuple(PATHS)) -> Iterator[list[Part]]:
    """Yield what a connection sends, without end: requests, mutated or not, in pieces with pauses between them."""
    bodies = _bodies()
    while True:
        parts = [_random_request(rng, bodies, paths) for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 8)))]
        data = b"".join(parts)
        if rng.random() < 0.4:
            for _ in range(rng.choice((1, 1, 2, 4))):
                data = _mutate(data, rng)
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3, 12))))
        if rng.random() < 0.1:
            cuts = list(range(0, min(len(data), 300), rng.randint(1, 9)))
        edges = [0, *cuts, len(data)]
        stream: list[Part] = []
        for start, end in pairwise(edges):
            stream += [data[start:end], rng.choice((0.0, 0.0, 0.001, 0.01))]
        yield stream[:-1]


def _random_request(rng: random.Random, bodies: Sequence[tuple[bytes, bytes]], paths: Sequence[bytes]) -> bytes:
    media_type, body = rng.choice(bodies)
    method = rng.choice(_METHODS)
    if method != b"POST" and rng.random() < 0.7:
        media_type, body = b"", b""
    lines = [
        method + b" " + rng.choice(paths) + b" " + rng.choice(_VERSIONS),
        b"Host: x",
    ]
    if rng.random() < 0.9:
        lines.append(b"X-API-Key: " + requests.KEY.encode())
    lines += [b"Content-Type: " + media_type] if media_type else []
    lines += rng.sample(_NOISE, rng.choice((0, 0, 0, 0, 1, 3)))
    framing = rng.random()
    if framing < 0.55:
        lines.append(b"Content-Length: %d" % len(body))
    elif framing < 0.65:
        lines.append(b"Content-Length: " + rng.choice((b"%d" % max(0, len(body) + rng.randint(-9, 9)), *_LENGTHS)))
    elif framing < 0.95:
        lines.append(b"Transfer-Encoding: chunked")
        body = _in_chunks(body, rng)
    if rng.random() < 0.5:
        lines.append(b"Connection: close")
    first, *others = lines
    rng.shuffle(others)
    lines = [first, *others]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _in_chunks(body: bytes, rng: random.Random) -> bytes:
    pieces, offset = [], 0
    largest = rng.choice((1, 7, 100, 5000))
    while offset < len(body) and len(pieces) < 2000:
        size = rng.randint(1, largest)
        chunk = body[offset : offset + size]
        extension = rng.choice((b"", b"", b"", b";a=b", b";" + b"e" * 50, b" "))
        pieces.append(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk))
        offset += size
    trailers = rng.choice((b"", b"", b"", b"a: b\r\n", b"Content-Length: 5\r\n", b"t: " + b"x" * 3000 + b"\r\n"))
    return b"".join(pieces) + rng.choice((b"0\r\n",) * 9 + (b"",)) + trailers + b"\r\n"


def _mutate(data: bytes, rng: random.Random) -> bytes:
    offset = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:
        offset = min(offset, rng.randrange(300))
    end = min(len(data), offset + rng.choice((1, 1, 2, 10, 200)))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:offset] + data[end:]
    if kind == 1:
        return data[:offset] + rng.choice(_INSERTED) * rng.choice((1, 1, 2, 50)) + data[offset:]
    if kind == 2:
        return data[:offset] + rng.randbytes(end - offset) + data[end:]
    if kind == 3:
        return data[:end] + data[offset:end] * rng.choice((1, 2, 30)) + data[end:]
    if kind == 4:
        return data[:end]
    return data[:offset] + data[offset:end].swapcase() + data[end:]


async def fuzz_http(
    address: Address,
    *,
    cases: int,
    seed: int,
    seconds: float,
    patience: float,
    only: int | None = None,
    paths: Sequence[bytes] = tuple(PATHS),
) -> Report:
    """Send random streams until ``cases`` or ``seconds`` are over.

    patience: seconds in which a connection must be answered or closed, longer than the service's own limits for heads
    and bodies. only: send just the case of that number. paths: that requests name.
    """
    report, started = Report(seed), time.monotonic()
    streams = enumerate(random_streams(random.Random(seed), paths))
    gate = asyncio.Semaphore(AT_ONCE)

    async def send(number: int, stream: Sequence[Part]) -> None:
        async with gate:
            result = await exchange(address, stream, patience=patience, quiet=_QUIET)
        _check(report, number, result)

    while report.cases < cases and time.monotonic() - started < seconds:
        batch = [next(streams) for _ in range(min(BATCH, cases - report.cases))]
        report.cases += len(batch)
        await asyncio.gather(*(send(*each) for each in batch if only is None or each[0] == only))
        last = batch[-1][0]
        good = await exchange(address, [requests.post("/detect", requests.small())], patience=60)
        if [answer.status for answer in good.answers] != [200]:
            report.fail(last, f"the good request after it: {[answer.status for answer in good.answers] or 'no answer'}")
        if left := await _connections_left(address, patience):
            report.fail(last, f"{left} connections are open after it")
    report.seconds = time.monotonic() - started
    return report


def _check(report: Report, number: int, result: Exchange) -> None:
    report.slowest_s = max(report.slowest_s, result.seconds)
    report.outcomes.update(str(answer.status) for answer in result.answers)
    if not result.answers:
        report.outcomes["closed" if result.closed is not None else "hung"] += 1
        if result.closed is None:
            report.fail(number, f"neither answered nor closed in {result.seconds:.1f} s")
    if result.malformed:
        report.fail(number, result.malformed)
    for answer in result.answers:
        if answer.status >= 500:
            report.fail(number, f"status {answer.status}: {answer.body[:200]!r}")
        if answer.status >= 400 and answer.headers.get("content-type", "text/plain").startswith("text/plain"):
            report.fail(number, f"status {answer.status} as plain text: {answer.body[:100]!r}")


async def _connections_left(address: Address, seconds: float) -> int:
    """Return how many connections the service still holds open, after up to ``seconds``."""
    until = time.monotonic() + seconds
    while (left := open_connections(address[1])) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return left


def open_connections(port: int) -> int:
    """Return how many accepted connections of a port of this machine are open at the server's side. Linux only."""
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            count += local.endswith(f":{port:04X}") and state in ("01", "08")  # established, close wait
    return count


# --------------------------------------------------------------------------------------------------------- the commands
async def _run_images(arguments: argparse.Namespace) -> Report:
    from service.images.decoding import prepare_pillow
    from service.images.pool import ImagePool
    from service.metrics import Metrics

    prepare_pillow()
    pool = ImagePool(2, 512 * 2**20, Metrics())

    async def decode(data: bytes) -> tuple[Any, tuple[int, int]]:
        canvas: dict[str, Any] = (
            {"canvas_for": lambda height, width: (320, 320), "canvases": ((320, 320),)} if len(data) % 2 else {}
        )
        return await pool.decode(data, max_pixels=MAX_PIXELS, deadline=time.monotonic() + DEADLINE_SECONDS, **canvas)

    await pool.open()
    try:
        return await fuzz_images(decode, **_limits(arguments))
    finally:
        await pool.close()


def _run_http(arguments: argparse.Namespace) -> Report:
    from benchmarks.serving.hostile import address_of, own_service

    if arguments.url:
        return asyncio.run(fuzz_http(address_of(arguments.url), patience=arguments.patience, **_limits(arguments)))
    with own_service(None, body_seconds=2) as (address, _):
        return asyncio.run(fuzz_http(address, patience=arguments.patience, **_limits(arguments)))


def _limits(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("cases", "seed", "seconds", "only")}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "http"))
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run only the case of that number")
    parser.add_argument("--url", help="http: of a running service")
    parser.add_argument("--patience", type=float, default=40, help="http: seconds until a connection counts as hung")
    arguments = parser.parse_args()
    report = asyncio.run(_run_images(arguments)) if arguments.what == "images" else _run_http(arguments)
    report.print()
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
