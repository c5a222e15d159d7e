"""Cases in HTTP itself: headers, framing, several requests on a connection, what is no HTTP/1.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.lib.hostile_case import (
    Case,
    check_size,
    form,
    head,
    photograph,
    post,
    post_form,
    same_for_all,
    small,
)
from benchmarks.lib.raw_http import Exchange


def headers() -> Iterator[Case]:
    """Yield headers that are many, long, malformed or extreme."""
    case = partial(same_for_all, "headers")

    def with_header(*lines: bytes, path: str = "/detect") -> Callable[[], bytes]:
        return lambda: post(path, small(), *lines, timeout_ms=None)

    long = 60_000
    yield case("Accept of 60,000 commas", with_header(b"Accept: " + b"," * long), short=True)
    yield case("Accept of 15,000 types", with_header(b"Accept: " + b"a/b," * 15_000))
    yield case("Accept of 30,000 parameters", with_header(b"Accept: image/png" + b";q" * 30_000))
    yield case(
        "Accept with extreme weights", with_header(b"Accept: image/png;q=nan,image/jpeg;q=1e999,a/b;q=-inf;q=\xc2\xb2")
    )
    yield case("Accept with a weight of 5,000 digits", with_header(b"Accept: image/png;q=" + b"9" * 5000))
    for name, value in (
        ("semicolons", b";" * long),
        ("parameters", b"; a=b" * 12_000),
        ("quotes", b'; a="' + b'\\"' * 29_000),
        ("backslashes", b'; boundary="' + b"\\" * 59_000),
        ("numbered parameters", b"; boundary*0*=utf-8''%41" * 2_500),
        ("equal signs", b"; " + b"=" * 59_000),
    ):
        for kind in (b"multipart/form-data", b"application/json", b"image/jpeg"):
            yield case(
                f"Content-Type {kind.decode()} with 60,000 bytes of {name}",
                partial(lambda line: post("/detect", small(), line, kind=None), b"Content-Type: " + kind + value),
                short=name == "semicolons" and kind == b"multipart/form-data",
            )
    yield case(
        "Content-Type in bytes that are no text",
        lambda: post("/detect", small(), b"Content-Type: \xff\xfe/\x80", kind=None),
    )
    yield case("a boundary of 60,000 bytes", lambda: post_form(form(("image", small())), boundary="b" * long))
    yield case("Authorization of 60,000 bytes", with_header(b"Authorization: Bearer " + b"x" * long))
    yield case("Authorization in bytes that are no text", with_header(b"Authorization: Bearer \xff\xfe\x80"))
    yield case("X-Request-ID of 60,000 bytes", with_header(b"X-Request-ID: " + b"x" * long))
    yield case("X-Request-ID with escapes", with_header(b'X-Request-ID: \x1b[31m"\\u0000%0d%0a<script>'))
    for name, value in (
        ("5,000 digits", b"9" * 5000),
        ("60,000 digits", b"9" * 60_000),
        ("other digits", "٣²".encode()),
        ("not a number", b"nan"),
        ("infinity", b"1e308"),
        ("below zero", b"-1"),
        ("zero", b"0"),
        ("many underscores", b"1_0" * 1000),
    ):
        yield case(
            f"X-Request-Timeout-Ms: {name}",
            with_header(b"X-Request-Timeout-Ms: " + value),
            short=name == "5,000 digits",
            statuses=frozenset({200, 400, 413, 422, 431, 504}),
        )
    yield case("250 headers", with_header(*[b"X-%d: 1" % n for n in range(250)]))
    yield case("5,000 headers", with_header(*[b"X-%d: 1" % n for n in range(5_000)]), short=True)
    yield case("10,000 headers of no length", with_header(*[b"a:"] * 10_000))
    yield case("200 headers with the same name", with_header(*[b"Cookie: a=b"] * 200))
    yield case("two request ids", with_header(b"X-Request-ID: a", b"X-Request-ID: b"))
    yield case("two hosts", with_header(b"Host: y"))
    yield case("two content types", with_header(b"Content-Type: application/json"))
    yield case("header continued on the next line", with_header(b"X-A: b\r\n c"))
    yield case("a header without a colon", with_header(b"nonsense"))
    yield case("a space before the colon", with_header(b"X-A : b"))
    yield case("a NUL in a header", with_header(b"X-A: \0b"))
    yield case("a lone carriage return in a header", with_header(b"X-A: b\rX-B: c"))


def _chunked(*chunks: bytes, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return body + b"0\r\n" + trailers + b"\r\n"


def http() -> Iterator[Case]:
    """Yield what goes on after the head, several requests on a connection, and what is no HTTP/1.1."""
    case = partial(same_for_all, "http")
    chunked = b"Transfer-Encoding: chunked"
    one = {"answers": 1, "closed_within": 5.0}
    smuggled = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"

    yield case(
        "20 MB of trailers",
        lambda: [head("/detect", None, chunked) + b"1\r\na\r\n0\r\n", *[b"a:b\r\n" * 20_000] * 200],
        silent=True,
        short=True,
    )
    yield case(
        "a trailer of 20 MB",
        lambda: [head("/detect", None, chunked) + b"1\r\na\r\n0\r\na:", *[b"b" * 100_000] * 200],
        silent=True,
    )
    yield case(
        "a few trailers",
        lambda: head("/detect", None, chunked) + _chunked(small(), trailers=b"a: b\r\n" * 5),
        statuses=frozenset({200}),
        short=True,
    )
    yield case("chunks of one byte, 50 KB", lambda: head("/detect", None, chunked) + _chunked(*[b"x"] * 50_000))
    yield case("chunks of one byte, 2 MB", lambda: head("/detect", None, chunked) + _chunked(*[b"x"] * 2_000_000))
    yield case(
        "chunks of one byte, in 3,000 packets",
        lambda: [head("/detect", None, chunked), *[b"1\r\nx\r\n", 0.0005] * 3000],
    )
    yield case(
        "20 MB of chunk extensions",
        lambda: [head("/detect", None, chunked), *[b"1;" + b"e" * 10_000 + b"\r\nx\r\n"] * 2000],
        silent=True,
        short=True,
    )
    yield case(
        "a chunk extension of 20 MB",
        lambda: [head("/detect", None, chunked) + b"1;", *[b"e" * 100_000] * 200],
        silent=True,
    )
    yield case(
        "a chunk size of a million zeros",
        lambda: [head("/detect", None, chunked), b"0" * 1_000_000 + b"1\r\nx\r\n0\r\n\r\n"],
    )
    for size in (b"ffffffffffffffff", b"fffffffffffffffffffff", b"-1", b"0x10", b" 1", b"", b"1 ;"):
        yield case(
            f"a chunk size of {size.decode()!r}",
            partial(lambda size: [head("/detect", None, chunked), size + b"\r\nx\r\n0\r\n\r\n"], size),
            silent=True,
        )

    for upgrade in (b"h2c", b"websocket"):
        name = upgrade.decode()
        settings = b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        line = b"Upgrade: " + upgrade + b"\r\n" + settings + b"\r\nConnection: Upgrade"
        yield case(
            f"upgrade to {name}, with its body",
            partial(lambda line: post("/detect", small(), line), line),
            **one,
            statuses=frozenset({200}),
            check=partial(check_size, width=64, height=48),
            short=True,
        )
        yield case(
            f"upgrade to {name}, its body a packet later",
            partial(lambda line: [head("/detect", len(small()), line), 0.2, small()], line),
            **one,
            statuses=frozenset({200}),
        )
        yield case(
            f"upgrade to {name}, a request as its later body",
            partial(lambda line: [head("/detect", len(smuggled), line), 0.2, smuggled], line),
            **one,
            statuses=frozenset({415}),
            short=True,
        )
        yield case(
            f"upgrade to {name}, chunked",
            partial(lambda line: [head("/detect", None, line, chunked), 0.1, _chunked(small())], line),
            **one,
            statuses=frozenset({200}),
        )
        yield case(
            f"upgrade to {name} of GET", partial(lambda line: head("/livez", None, line, method="GET"), line), **one
        )
    yield case(
        "CONNECT",
        lambda: b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n" + smuggled,
        silent=True,
        closed_within=15.0,
        short=True,
        check=lambda exchanges: "data after CONNECT read as a request" if len(exchanges[0].answers) > 1 else "",
    )
    yield case(
        "CONNECT with a body", lambda: post("/detect", smuggled, method="CONNECT"), silent=True, closed_within=15.0
    )

    get = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    end = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    # Pipelined requests may be refused from some number on; those before are answered in order.
    some = {"statuses": frozenset({200, 400}), "closed_within": 10.0}
    yield case("300 requests at once on a connection", lambda: get * 299 + end, **some, short=True, processor=10)
    yield case("5,000 requests at once on a connection", lambda: get * 4999 + end, **some, processor=30)
    yield case(
        "2,000 images at once on a connection",
        lambda: [post("/detect", small(), close=False)] * 2000 + [end],
        processor=120,
        statuses=frozenset({200, 400, 429}),
        deadline=60,
    )
    yield case(
        "5,000 requests whose answers are not read",
        lambda: [get * 50] * 100,
        read=False,
        silent=True,
        closed_within=40.0,
        processor=40,
    )
    yield case(
        "images drawn and not read",
        lambda: [post("/detect", photograph(), b"Accept: image/png", close=False)] * 40,
        read=False,
        silent=True,
        closed_within=60.0,
        processor=60,
    )
    yield case(
        "metrics, 3,000 times, not read",
        lambda: [b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 30] * 100,
        read=False,
        silent=True,
        closed_within=60.0,
        processor=60,
    )
    yield case(
        "a line end after a request",
        lambda: [end.replace(b"close", b"keep-alive"), 0.2, b"\r\n"],
        answers=1,
        closed_within=85.0,
    )
    yield case("a space after a request", lambda: [end.replace(b"close", b"keep-alive"), 0.2, b" "], closed_within=85.0)
    yield case(
        "half a head after a request",
        lambda: [end.replace(b"close", b"keep-alive"), 0.2, b"GET / HT"],
        closed_within=15.0,
    )
    yield case("line ends without a request", lambda: [b"\r\n" * 1000], silent=True, closed_within=15.0)
    yield case("line ends, one every 2 s", lambda: [b"\r\n", 2.0] * 8, silent=True, closed_within=1.0)
    yield case("40 connections that send nothing", list, silent=True, closed_within=15.0, connections=40)
    yield case(
        "40 heads of a byte every 0.5 s",
        lambda: [b"G", *[0.5, b"E"] * 30],
        silent=True,
        closed_within=0.5,
        connections=40,
    )
    yield case(
        "a header every 0.5 s",
        lambda: [b"GET /livez HTTP/1.1\r\n", *[0.5, b"X-A: b\r\n"] * 30],
        silent=True,
        closed_within=0.5,
    )
    yield case("2,500 connections that send nothing", list, silent=True, closed_within=30.0, connections=2500)
    yield case(
        "a body of a byte every 0.2 s after 404",
        lambda: [head("/nowhere", 10**6), *[0.2, b"x"] * 40],
        closed_within=1.0,
    )
    yield case(
        "a body of a byte every 0.2 s after 401",
        lambda: [head("/detect", 10**6, key=None), *[0.2, b"x"] * 40],
        closed_within=20.0,
    )
    yield case(
        "a body of a byte every 0.2 s after 405", lambda: [head("/livez", 10**6), *[0.2, b"x"] * 40], closed_within=1.0
    )
    yield case(
        "20 MB of body after 404", lambda: [head("/nowhere", 10**9), *[b"x" * 100_000] * 200], closed_within=10.0
    )
    yield case(
        "the same, not read",
        lambda: [head("/nowhere", 10**9), *[b"x" * 100_000] * 200],
        closed_within=30.0,
        read=False,
        silent=True,
    )
    yield case(
        "an image of a byte every 0.2 s", lambda: [head("/detect", 10**6), *[0.2, b"x"] * 20], closed_within=10.0
    )
    yield case("a body that ends early", lambda: [head("/detect", 10**6), b"x" * 1000], closed_within=25.0)

    def no_continue(exchanges: Sequence[Exchange]) -> str:
        return "100 Continue for a body over the limit" if exchanges[0].interim else ""

    expect = b"Expect: 100-continue"
    yield case(
        "10 GB announced, with Expect",
        lambda: head("/detect", 10**10, expect),
        statuses=frozenset({413}),
        closed_within=5.0,
        check=no_continue,
        short=True,
    )
    yield case(
        "10 GB announced without a key",
        lambda: head("/detect", 10**10, expect, key=None),
        closed_within=5.0,
        check=no_continue,
    )
    yield case(
        "Expect at a route that takes no body", lambda: head("/livez", 100, expect, method="GET"), closed_within=25.0
    )
    yield case("Expect with nonsense", lambda: post("/detect", small(), b"Expect: the unexpected"))
    for name, lines in (
        ("of 5,000 digits", (b"Content-Length: " + b"9" * 5000,)),
        ("of 2**64", (b"Content-Length: 18446744073709551616",)),
        ("below zero", (b"Content-Length: -1",)),
        ("with a sign", (b"Content-Length: +5",)),
        ("twice, differing", (b"Content-Length: 5", b"Content-Length: 6")),
        ("as a list", (b"Content-Length: 5, 5",)),
        ("in other digits", b"Content-Length: \xc2\xb2".split(b"\n")),
        ("of nothing", (b"Content-Length:",)),
        ("and chunked", (b"Content-Length: 5", chunked)),
        ("and chunked, in the other order", (chunked, b"Content-Length: 5")),
    ):
        yield case(
            f"Content-Length {name}",
            partial(lambda lines: head("/detect", None, *lines) + b"5\r\nhello\r\n0\r\n\r\n" + smuggled, tuple(lines)),
            silent=True,
            closed_within=25.0,
        )
    for value in (
        b"gzip, chunked",
        b"chunked, chunked",
        b"xchunked",
        b"chunked\x0b",
        b"identity",
        b"chunked;q=1",
        b" chunked",
        b"Chunked",
    ):
        yield case(
            f"Transfer-Encoding {value!r}",
            partial(lambda value: head("/detect", None, b"Transfer-Encoding:" + value) + _chunked(small()), value),
            silent=True,
            closed_within=25.0,
        )
    for name, data in (
        ("HTTP/1.0", b"GET /livez HTTP/1.0\r\n\r\n"),
        (
            "HTTP/1.0 with a body and keep-alive",
            b"POST /detect HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
        ),
        ("HTTP/1.0, chunked", b"POST /detect HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
        ("HTTP/0.9", b"GET /livez\r\n"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100)),
        ("HTTP/3.9", b"GET /livez HTTP/3.9\r\nHost: x\r\n\r\n"),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500)),
        ("an address with a host", b"GET http://example.com/livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        (
            "an address with a port of 10**6",
            b"GET http://x:1000000/livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ),
        ("an address of a bracket", b"GET http://[/livez HTTP/1.1\r\nHost: [::1\r\nConnection: close\r\n\r\n"),
        ("a host in brackets", b"GET /livez HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n"),
        ("the address *", b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        ("TRACE", b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        ("a method of 10 KB", b"X" * 10_000 + b" / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("line feeds alone", b"GET /livez HTTP/1.1\nHost: x\nConnection: close\n\n"),
        ("a NUL in the path", b"GET /li\0vez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        ("bytes that are no text in the path", b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        ("no HTTP", b"nonsense\r\n\r\n"),
        ("a megabyte of NUL", bytes(1_000_000)),
    ):
        yield case(
            name,
            partial(lambda data: data, data),
            silent=True,
            closed_within=25.0,
            short=name in ("no HTTP", "HTTP/1.0"),
        )
    for path in (
        "/%00",
        "/web/%00",
        "/web/app%00.js",
        "/detect%00",
        "/v2/models/%00/infer",
        "/web/../../../../etc/passwd",
        "/web/%2e%2e/%2e%2e/app.py",
        "/web//etc/passwd",
        "/%ff%fe",
        "/%",
        "/web/%zz",
        "//example.com/",
        "/" + "a/" * 15_000,
        "/web/" + "x" * 5000,
        "/docs?%00=%00",
        "/openapi.json?" + "x" * 60_000,
        "/web/" + "%2e%2e/" * 2000,
    ):
        for method in ("GET", "POST"):
            yield case(
                f"{method} {path[:30]}",
                partial(lambda path, method: post(path, method=method), path, method),
                closed_within=5.0,
                short=path == "/web/%00" and method == "GET",
            )
