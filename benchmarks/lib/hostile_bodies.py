"""Cases in the bodies and the options of requests: JSON, forms, the dialects of other services."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from benchmarks.lib import hostile_images as images
from benchmarks.lib.hostile_case import (
    Case,
    base64_of,
    form,
    nested,
    photograph,
    post,
    post_form,
    post_json,
    same_for_all,
    small,
)


def options() -> Iterator[Case]:
    """Yield options that are many, deep, long or extreme: in the query, in JSON and in forms."""
    case = partial(same_for_all, "options")
    image = b'"image":"%b"' % base64_of(small()).encode()

    def member(text: bytes | Callable[[], bytes], path: str = "/detect") -> Callable[[], bytes]:
        return lambda: post_json(b"{" + image + b"," + (text if isinstance(text, bytes) else text()) + b"}", path)

    def query(text: str, path: str = "/detect") -> Callable[[], bytes]:
        return lambda: post(f"{path}?{text}", small())

    bad = frozenset({400, 413, 422})
    many = partial(b",".join)
    for path in ("/detect", "/detect/batch", "/proposals", "/explain"):
        yield case(
            f"1,000 nulls for classes, {path}",
            member(b'"classes":[' + many([b"null"] * 1000) + b"]", path),
            statuses=bad,
            short=path == "/detect",
        )
        yield case(
            f"11,000 unknown options in the query, {path}",
            query("&".join(map(str, range(11_000))), path),
            statuses=bad | {431},
            short=path == "/detect",
        )
    yield case(
        "the same without a key", lambda: post("/detect?" + "&".join(map(str, range(11_000))), small(), key=None)
    )
    yield case(
        "20,000 unknown members", member(lambda: many(b'"u%d":1' % n for n in range(20_000))), statuses=bad, short=True
    )
    yield case(
        "a member of a million empty lists",
        member(lambda: b'"x":[' + many([b"[]"] * 1_000_000) + b"]"),
        statuses=bad,
        short=True,
    )
    yield case(
        "a member of a million empty objects",
        member(lambda: b'"x":[' + many([b"{}"] * 1_000_000) + b"]"),
        statuses=bad,
    )
    yield case(
        "5 million numbers for classes",
        member(lambda: b'"classes":[' + many([b"1"] * 5_000_000) + b"]"),
        statuses=bad,
    )
    yield case(
        "a million strings for classes",
        member(lambda: b'"classes":[' + many([b'"cat"'] * 1_000_000) + b"]"),
        statuses=bad,
    )
    yield case(
        "1,000 objects for classes",
        member(b'"classes":[' + many([b'{"a":1}'] * 1000) + b"]"),
        statuses=bad,
    )
    yield case(
        "1,000 long strings for classes",
        member(b'"classes":["' + b'","'.join([b"x" * 60] * 1000) + b'"]'),
        statuses=bad,
    )
    yield case(
        "30,000 members that are strings of 1,000",
        member(lambda: many(b'"u%d":"%b"' % (n, b"x" * 1000) for n in range(30_000))),
        statuses=bad,
    )
    yield case(
        "lists nested 100,000 deep",
        member(lambda: b'"x":' + nested(100_000)),
        short=True,
        statuses=bad,
    )
    yield case(
        "objects nested 100,000 deep",
        member(lambda: b'"x":' + nested(100_000, b'{"a":', b"}").replace(b":}", b":1}")),
        statuses=bad,
    )
    yield case(
        "a million lists that are never closed",
        lambda: post_json(b"[" * 1_000_000),
        statuses=bad,
    )
    yield case("the member image, 500,000 times", lambda: post_json(b"{" + many([b'"image":""'] * 500_000) + b"}"))
    yield case(
        "a member name of 5 MB",
        member(lambda: b'"' + b"n" * 5_000_000 + b'":1'),
        statuses=bad,
    )
    yield case(
        "a member name of 5 MB of escapes",
        member(lambda: b'"' + b"\\u0000" * 800_000 + b'":1'),
        statuses=bad,
    )
    yield case(
        "a string of 5 MB that is no image",
        member(lambda: b'"box_format":"' + b"n" * 5_000_000 + b'"'),
        statuses=bad,
    )
    yield case(
        "strings of 2 KB, 10,000 times",
        member(lambda: many([b'"a":"' + b"x" * 2000 + b'"'] * 10_000)),
        statuses=bad,
    )
    yield case(
        "quotes and backslashes, 5 MB",
        lambda: post_json(b'{"image":"' + b'\\"' * 2_500_000 + b'"}'),
        statuses=bad,
    )
    yield case(
        "backslashes, 5 MB, no end",
        lambda: post_json(b'{"image":"' + b"\\" * 5_000_000),
        statuses=bad,
    )
    yield case(
        "quotes alone, 5 MB",
        lambda: post_json(b'"' * 5_000_000),
        statuses=bad,
    )
    yield case(
        "a number of a million digits",
        member(lambda: b'"proposals":' + b"9" * 1_000_000),
        statuses=bad,
    )
    yield case("a number of 5,000 digits", member(lambda: b'"max_detections":' + b"9" * 5_000), statuses=bad)
    yield case(
        "a number of 5,000 digits in a string",
        member(lambda: b'"max_detections":"' + b"9" * 5_000 + b'"'),
        statuses=bad,
    )
    yield case(
        "a class of 5,000 digits", member(lambda: b'"classes":["' + b"9" * 5_000 + b'"]'), statuses=bad, short=True
    )
    yield case(
        "a class of other digits",
        query("classes=%C2%B2&classes=%D9%A3"),
        statuses=bad,
    )
    yield case(
        "numbers beyond their range",
        member(b'"score_threshold":1e400,"proposals":-1e308'),
        statuses=bad,
    )
    yield case(
        "NaN and Infinity",
        member(b'"score_threshold":NaN,"nms_threshold":Infinity'),
        statuses=bad,
    )
    yield case(
        "lone surrogates",
        member(b'"classes":["\\ud800"],"\\udfff":1'),
        statuses=bad,
    )
    yield case(
        "bytes that are no UTF-8",
        member(b'"classes":["\xff\xfe"],"\xc0\x80":1'),
        statuses=bad,
    )
    yield case(
        "an empty document of 32 MB",
        lambda: post_json(b" " * (32 * 2**20 - 2) + b"{}"),
        statuses=bad,
    )
    yield case(
        "a UTF-16 document",
        lambda: post_json('{"image":"aGk="}'.encode("utf-16")),
        statuses=bad,
    )
    yield case(
        "20 MB of white space in base64",
        lambda: post_json(b'{"image":"' + b"aGk=" + b" " * 20_000_000 + b'"}'),
        statuses=bad,
    )
    yield case(
        "20 MB of escaped line ends in base64", lambda: post_json(b'{"image":"' + b"\\n" * 10_000_000 + b'aGk="}')
    )
    yield case("30 MB of base64", lambda: post_json(b'{"image":"' + b"A" * 30_000_000 + b'"}'), statuses=bad | {415})
    yield case(
        "20 MB of padding in base64",
        lambda: post_json(b'{"image":"' + b"=" * 20_000_000 + b'"}'),
        statuses=bad,
    )
    yield case(
        "base64 after a data URL of 20 MB", lambda: post_json(b'{"image":"data:' + b"x" * 20_000_000 + b',aGk="}')
    )
    yield case(
        "images that are nested lists",
        lambda: post_json(b'{"image":' + nested(1000) + b"}"),
        statuses=bad,
    )
    yield case("classes=1, 1,000 times in the query", query("&".join(["classes=1"] * 1000)))
    yield case("a class of 60,000 letters in the query", query("classes=" + "x" * 60_000), statuses=bad | {431})
    yield case("60,000 percent escapes in the query", query("classes=" + "%41" * 20_000), statuses=bad | {431})
    yield case("60,000 semicolons in the query", query("a;" * 30_000), statuses=bad | {431})
    yield case("60,000 ampersands in the query", query("&" * 60_000))
    boxes = [[0.5 * n % 30, 1, 40 + n % 7, 40] for n in range(2000)]
    yield case("2,000 regions", lambda: post_json({"image": base64_of(small()), "regions": boxes}), short=True)
    yield case("2,000 regions as text", lambda: post_json({"image": base64_of(small()), "regions": json.dumps(boxes)}))
    yield case(
        "2,001 regions",
        lambda: post_json({"image": base64_of(small()), "regions": [*boxes, boxes[0]]}),
        statuses=bad,
    )
    yield case(
        "2,000 nulls for regions",
        member(b'"regions":[' + many([b"null"] * 2000) + b"]"),
        statuses=bad,
    )
    yield case("regions of 1e308", member(b'"regions":[[-1e308,-1e308,1e308,1e308]]'), statuses=bad | {200})
    yield case("regions of tiny numbers", member(b'"regions":[[5e-324,0,1e-323,1e-323]]'), statuses=bad | {200})
    yield case("regions of 60 KB in the query", query("regions=" + "[" * 60_000), statuses=bad | {431})
    yield case(
        "regions of 5,000 digits",
        member(b'"regions":[[0,0,' + b"9" * 5000 + b",5]]"),
        statuses=bad,
    )
    yield case(
        "regions with true and strings",
        member(b'"regions":[[true,false,"5",[]]]'),
        statuses=bad,
    )
    for notation in ("xyxy", "xywh", "cxcywh"):
        for normalized in ("false", "true"):
            yield case(
                f"boxes of 1e308 to explain, {notation}, normalized {normalized}",
                member(
                    b'"boxes":[[1e308,1e308,1e308,1e308]],"box_format":"%b","normalized":%b'
                    % (notation.encode(), normalized.encode()),
                    "/explain",
                ),
                statuses=bad,
                short=notation == "cxcywh" and normalized == "true",
            )
    yield case(
        "boxes as deep text to explain",
        member(lambda: b'"boxes":"' + b"[" * 60_000 + b'"', "/explain"),
        statuses=bad,
    )
    yield case(
        "boxes with nulls to explain",
        member(b'"boxes":[[null,null,null,null]]', "/explain"),
        statuses=bad,
    )
    yield case(
        "a million boxes to explain",
        member(lambda: b'"boxes":[' + many([b"[]"] * 1_000_000) + b"]", "/explain"),
        statuses=bad,
    )
    yield case(
        "labels that are objects to explain",
        member(b'"boxes":[[0,0,9,9]],"labels":[{}]', "/explain"),
        statuses=bad,
    )
    yield case(
        "a level of 10**30",
        lambda: post(f"/proposals?level={10**30}", small()),
        statuses=bad,
    )
    yield case("a limit of 10,000 before NMS", lambda: post("/proposals?limit=10000&stage=pre_nms", photograph()))
    yield case("10,000 proposals", lambda: post("/detect?proposals=10000", photograph()))


def compat() -> Iterator[Case]:
    """Yield bodies that the dialects do not expect: DeepStack, Hugging Face, the Open Inference Protocol."""
    case = partial(same_for_all, "compat")
    image = base64_of(small())
    nested_values: Mapping[str, bytes] = {
        "null": b"null",
        "a number": b"5",
        "a list": b"[]",
        "lists, 100,000 deep": nested(100_000),
        "an object": b'{"image":"x"}',
        "a list of a list": b"[[[]]]",
        "a million lists": b"[" + b"[]," * 1_000_000 + b"1]",
        "5,000 digits": b"9" * 5000,
        "1e308": b"1e308",
        "true": b"true",
        "a string of digits": b'"' + b"9" * 5000 + b'"',
    }
    bad = frozenset({400, 404, 413, 415, 422})
    for name, value in nested_values.items():
        for member, document in (
            ("inputs", b'{"inputs":%b}'),
            ("parameters", b'{"inputs":"' + image.encode() + b'","parameters":%b}'),
            ("threshold", b'{"inputs":"' + image.encode() + b'","parameters":{"threshold":%b}}'),
        ):
            yield case(
                f"Hugging Face: {member} is {name}",
                partial(
                    lambda document, value: post_json(document % value, "/huggingface/object-detection"),
                    document,
                    value,
                ),
                statuses=bad | {200},
                short=name == "an object" and member == "inputs",
            )
        tensor = {"name": '"image"', "datatype": '"BYTES"', "shape": "[1]", "data": f'["{image}"]', "parameters": "{}"}
        for member in tensor:
            inside = ",".join(f'"{key}":{"%s" if key == member else text}' for key, text in tensor.items())
            yield case(
                f"Open Inference: {member} of the input is {name}",
                partial(
                    lambda inside, value: _infer(b'{"inputs":[{%b}]}' % inside.encode().replace(b"%s", value)),
                    inside,
                    value,
                ),
                statuses=bad | {200},
                short=name == "lists, 100,000 deep" and member == "shape",
            )
        for member in ("inputs", "outputs", "parameters", "id"):
            yield case(
                f"Open Inference: {member} is {name}",
                partial(
                    lambda member, value: _infer(_tensor() + b',"%b":%b}' % (member.encode(), value)), member, value
                ),
                statuses=bad | {200},
            )
    outputs = {
        "5": b'[{"name":5}]',
        "an object": b'[{"name":{}}]',
        "a list": b'[{"name":[1]}]',
        "null": b'[{"name":null}]',
        "no object": b"[5]",
        "parameters of a number": b'[{"name":"boxes","parameters":5}]',
        "100,000 names": b"[" + b",".join([b'{"name":"boxes"}'] * 100_000) + b"]",
    }
    for name, value in outputs.items():
        yield case(
            f"Open Inference: outputs named {name}",
            partial(lambda value: _infer(_tensor() + b',"outputs":' + value + b"}"), value),
            statuses=bad | {200},
            short=name == "5",
        )
    for name, value in (
        ("5,000 nines", b"9" * 5000),
        ("60,000 nines", b"9" * 60_000),
        ("other digits", b"\xc2\xb2"),
        ("below zero", b"-1"),
        ("over the body", b"999999"),
        ("nothing", b""),
    ):
        yield case(
            f"Open Inference: a header length of {name}",
            partial(
                lambda value: post(
                    "/v2/models/lite-voc20/infer",
                    _tensor() + b"}",
                    b"Inference-Header-Content-Length: " + value,
                    kind="application/json",
                ),
                value,
            ),
            statuses=bad | {200, 431},
            short=name == "5,000 nines",
        )
    for shape in (
        "[1e308]",
        "[-1,-1,3]",
        "[9223372036854775807,9223372036854775807,3]",
        "[" + "1," * 500_000 + "3]",
        "[0,0,3]",
        '["' + "9" * 5000 + '",1,3]',
        "[NaN]",
        "[4294967296,4294967296,3]",
        "[1.5,1,3]",
    ):
        yield case(
            f"Open Inference: pixels of the shape {shape[:32]}",
            partial(
                lambda shape: _infer(
                    b'{"inputs":[{"name":"image","datatype":"UINT8","shape":%b,"data":[1,2,3]}]}' % shape.encode()
                ),
                shape,
            ),
            statuses=bad | {200},
        )
    yield case(
        "Open Inference: 5 million pixels as numbers",
        lambda: _infer(
            b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1000,1000,3],"data":['
            + b",".join([b"1"] * 3_000_000)
            + b"]}]}"
        ),
    )
    for size in (b"1e30", b"-1", b'"' + b"9" * 5000 + b'"', b"99999999999999999999", b"[]", b"true", b"1.5"):
        yield case(
            f"Open Inference: a binary size of {size[:20].decode()}", partial(_binary, size), statuses=bad | {200}
        )
    yield case(
        "Open Inference: a million items of no length",
        lambda: _binary(b"4000000", bytes(4_000_000)),
        statuses=bad,
    )
    yield case(
        "Open Inference: 32 items that are large to decode",
        lambda: _bombs(images.WEBP["lossless, 8000 x 8000"], 32),
        processor=10,
    )
    for name, field_value in (
        ("5,000 digits", b"9" * 5000),
        ("not a number", b"nan"),
        ("infinity", b"inf"),
        ("below zero", b"-1e308"),
        ("nothing", b""),
    ):
        yield case(
            f"DeepStack: min_confidence is {name}",
            partial(
                lambda value: post_form(form(("image", small()), ("min_confidence", value)), "/v1/vision/detection"),
                field_value,
            ),
            statuses=bad,
            short=name == "5,000 digits",
        )
    yield case(
        "DeepStack: 100 confidences",
        lambda: post_form(form(("image", small()), *[("min_confidence", b"0.5")] * 100), "/v1/vision/detection"),
        statuses=bad,
    )
    yield case(
        "DeepStack: JSON lists",
        lambda: post_json(
            b'{"image":"%b","min_confidence":%b}' % (image.encode(), nested(100)), "/v1/vision/detection"
        ),
        statuses=bad,
    )


def _tensor() -> bytes:
    """Return the start of a valid request of the Open Inference Protocol."""
    return b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["%b"]}]' % base64_of(small()).encode()


def _infer(document: bytes) -> bytes:
    return post_json(document, "/v2/models/lite-voc20/infer")


def _binary(size: bytes, tail: bytes | None = None) -> bytes:
    tail = struct.pack("<I", len(small())) + small() if tail is None else tail
    document = (
        b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":%b}}]}' % size
    )
    line = b"Inference-Header-Content-Length: %d" % len(document)
    return post("/v2/models/lite-voc20/infer", document + tail, line, kind="application/octet-stream")


def _bombs(make: images.MakeFile, count: int) -> bytes:
    file = make()
    tail = (struct.pack("<I", len(file)) + file) * count
    return _binary(b"%d" % len(tail), tail)


def multipart() -> Iterator[Case]:
    """Yield forms that are many, long, nested or broken."""
    case = partial(same_for_all, "multipart")
    disposition = b'Content-Disposition: form-data; name="image"; filename="x"'

    def part(lines: bytes, data: bytes | None = None, end: bytes = b"--\r\n") -> Callable[[], bytes]:
        return lambda: post_form(
            b"--b\r\n" + lines + b"\r\n\r\n" + (small() if data is None else data) + b"\r\n--b" + end
        )

    yield case("128 images", lambda: post_form(form(*[("image", small())] * 128)))
    yield case("128 images as a batch", lambda: post_form(form(*[("image", small())] * 128), "/detect/batch"))
    yield case(
        "32 images that are large to decode",
        lambda: post_form(form(*[("image", images.WEBP["lossless, 8000 x 8000"]())] * 32), "/detect/batch"),
        processor=10,
    )
    yield case(
        "32 images of 4 megapixels each",
        lambda: post_form(form(*[("image", images.plain("PNG", 2000))] * 32), "/detect/batch"),
        processor=10,
    )
    yield case(
        "10,000 parts", lambda: post_form(form(*[("a", b"")] * 10_000)), statuses=frozenset({400, 413, 422}), short=True
    )
    yield case(
        "127 fields of 64 KiB",
        lambda: post_form(form(("image", small()), *[(f"f{n}", b"x" * 65_536) for n in range(127)])),
        statuses=frozenset({400, 413, 422}),
    )
    yield case(
        "127 fields of classes",
        lambda: post_form(form(("image", small()), *[("classes", b"x" * 500)] * 127)),
        statuses=frozenset({400, 413, 422}),
    )
    yield case(
        "regions of 60 KB of brackets",
        lambda: post_form(form(("image", small()), ("regions", b"[" * 60_000))),
        statuses=frozenset({400, 413, 422}),
    )
    yield case(
        "boxes of 60 KB of empty lists",
        lambda: post_form(form(("image", small()), ("boxes", b"[" + b"[]," * 20_000 + b"1]")), "/explain"),
        statuses=frozenset({400, 413, 422}),
    )
    yield case("a field name of 5 MB", lambda: post_form(form(("n" * 5_000_000, b"1"))))
    yield case("a field name of quotes and backslashes", lambda: post_form(form(('\\"' * 500_000, b"1"))))
    yield case("10,000 headers in a part", part(disposition + b"\r\nX-A: b" * 10_000))
    yield case("a million headers in a part", part(disposition + b"\r\na:b" * 1_000_000))
    yield case("a header name of 5 MB", part(b"n" * 5_000_000 + b": 1\r\n" + disposition))
    yield case("a header value of 5 MB", part(disposition + b"\r\nX-A: " + b"v" * 5_000_000))
    yield case("a disposition of a million parameters", part(disposition + b"; a=b" * 1_000_000))
    yield case("a disposition of 500,000 escaped quotes", part(disposition + b'; a="' + b'\\"' * 500_000 + b'"'))
    yield case(
        "a disposition in 10,000 pieces",
        part(b"Content-Disposition: form-data" + b"".join(b"; name*%d*=%%41" % n for n in range(10_000))),
    )
    yield case(
        "5 MB of carriage returns",
        part(disposition, b"\r" * 5_000_000),
        statuses=frozenset({400, 413, 415, 422}),
        short=True,
    )
    yield case("5 MB of line ends", part(disposition, b"\r\n" * 2_500_000))
    yield case("5 MB of line ends and dashes", part(disposition, b"\r\n--" * 1_250_000))
    yield case("5 MB of near boundaries", part(disposition, b"\r\n--a" * 1_000_000))
    yield case("5 MB of dashes", part(disposition, b"-" * 5_000_000))
    yield case(
        "a long boundary, nearly repeated",
        lambda: post_form(form(("image", (b"\r\n--" + b"b" * 199) * 20_000), boundary=b"b" * 200), boundary="b" * 200),
    )
    yield case("a form in a form", lambda: post_form(form(("image", form(*[("image", form(("image", small())))] * 3)))))
    yield case(
        "mixed parts, 100 deep",
        lambda: post_form(
            b"".join(
                b"--b\r\nContent-Type: multipart/mixed; boundary=b%d\r\n" % n + disposition + b"\r\n\r\n"
                for n in range(100)
            )
            + small()
        ),
    )
    yield case("no end", part(disposition, None, b"\r\n"), statuses=frozenset({400}), short=True)
    yield case("no end, 30 MB", part(disposition, bytes(30_000_000), b""), statuses=frozenset({400}))
    yield case(
        "no boundary named",
        lambda: post("/detect", form(("image", small())), kind="multipart/form-data"),
        statuses=frozenset({400, 422}),
    )
    yield case("20 MB before the first part", lambda: post_form(b"x" * 20_000_000 + form(("image", small()))))
    yield case(
        "20 MB of line ends before the first part", lambda: post_form(b"\r\n" * 10_000_000 + form(("image", small())))
    )
    yield case("20 MB after the last part", lambda: post_form(form(("image", small())) + b"x" * 20_000_000))
    yield case("30 MB of empty parts", lambda: post_form(b"--b\r\n\r\n" * 3_700_000))
    yield case(
        "parts without a name", lambda: post_form(b"--b\r\nX-A: b\r\n\r\nx\r\n--b--\r\n"), statuses=frozenset({400})
    )
    yield case("a header that never ends", lambda: post_form(b"--b\r\n" + b"X" * 30_000_000))
