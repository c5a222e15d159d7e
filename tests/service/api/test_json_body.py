"""JSON bodies: parsed as orjson parses them, but for images, which are cut out and decoded piece by piece."""

import base64
import json
import time
import tracemalloc
from unittest.mock import patch

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.api import json_body
from service.api.json_body import MAX_OPTIONS_BYTES, parse_json
from service.errors import BadRequest, ServiceError, TooLarge

IMAGE = bytes(range(256)) * 300
BASE64 = base64.b64encode(IMAGE).decode()  # longer than all else may be


def parse(body: bytes):
    """Return the image and the other members of a body."""
    document = parse_json(body, "")
    image = document.decode_base64(document.members.pop("image"), "image")
    return image, document.restore(document.members)


_texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(['"', "\\", '\\"', "/", "[{,:"])
_strings = _texts | st.builds(lambda text, times: text * times, _texts, st.integers(0, 100))
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _strings,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(_strings, values, max_size=4),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(_strings, _values, max_size=4), st.booleans(), st.sampled_from([None, 2]))
def test_the_members_beside_an_image_are_as_orjson_parses_them(options, ascii, indent):
    text = json.dumps(options | {"image": BASE64} | options, ensure_ascii=ascii, indent=indent)
    body = (text[:-1] + f', "image": "{BASE64}"}}').encode()
    assume(len(body) - 2 * len(BASE64) < 60_000)
    expected = orjson.loads(body)
    del expected["image"]
    assert parse(body) == (IMAGE, expected)


@settings(max_examples=150, deadline=None)
@given(st.text("AQgw+/= \n", max_size=60), st.booleans())
def test_base64_is_decoded_as_pythons_own_decoder_does(text, php):
    literal = json.dumps(text).replace("/", "\\/") if php else json.dumps(text)
    packed = "".join(text.split())
    assume("=" not in packed or (len(packed) % 4 == 0 and packed.count("=") < 3))  # Python ignores padding too much
    try:
        expected = base64.b64decode(packed, validate=True)
    except ValueError:
        expected = None
    with patch.object(json_body, "_PIECE", 16):  # so that the text has several pieces, and escapes at their ends
        try:
            decoded = json_body._decode(json_body._unescaped_pieces(literal.encode(), (0, len(literal) - 1)))
        except ValueError:
            decoded = None
    assert decoded == expected


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        "data:image/jpeg;base64," + BASE64,
        "\\r\\n".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76)),
        ("data:image/jpeg;base64," + BASE64).replace("/", "\\/"),
        BASE64.replace("+", "\\u002b"),
    ],
    ids=["plain", "data URL", "lines", "slashes escaped as by PHP", "plus escaped as by .NET"],
)
def test_an_image_may_be_written_in_all_these_ways(text):
    assert parse(f'{{"image": "{text}"}}'.encode()) == (IMAGE, {})


@pytest.mark.parametrize("text", [BASE64 + "A", BASE64 + "é", BASE64 + "\\\\", BASE64 + '\\"', "\\ud800" + BASE64])
def test_a_long_string_that_is_not_base64_is_refused_as_a_short_one_is(text):
    with pytest.raises(ServiceError) as refused:
        parse(f'{{"image": "{text}"}}'.encode())
    assert refused.value.status in (400, 413)


def test_of_two_members_with_one_name_the_last_counts():
    assert parse(f'{{"image": "{"A" * 70_000}", "image": "{BASE64}"}}'.encode()) == (IMAGE, {})


def test_strings_that_are_put_back_count_among_the_options():
    def options(length):
        return parse(f'{{"image": "{BASE64}", "regions": "{" " * length}"}}'.encode())[1]

    assert options(60_000) == {"regions": " " * 60_000}
    with pytest.raises(TooLarge, match="65536 bytes beside its images"):
        options(MAX_OPTIONS_BYTES)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"image": ' + BASE64.encode("utf-16"), None),
        ('{"image": "aGk="}'.encode("utf-16"), "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"image": "' + BASE64.encode(), "has no end"),
        (b'{"image": "' + BASE64.encode() + b'"', "not JSON"),
        (b'["' + BASE64.encode() + b'"]', "must be an object"),
        (b'{"image": "' + BASE64.encode() + b'", "a": ' + b"[" * 60_000, "not JSON"),
    ],
)
def test_other_bodies_are_refused_with_an_example(body, problem):
    with pytest.raises(BadRequest if problem else TooLarge, match=problem):
        parse_json(body, '{"image": "<base64>"}')


def test_restoring_a_deeply_nested_value_is_refused():
    body = b'{"a": %b"%b"%b}' % (b"[" * 500, b"a" * 2000, b"]" * 500)
    with pytest.raises(BadRequest, match="64 levels"):
        parse(body[:-1] + f', "image": "{BASE64}"}}'.encode())


@pytest.mark.parametrize(
    "unit", [b"[],", b'"",', b'\\"', b"\\", b'"', b'"\\', b'{"":', b"1,", b'"%b",' % (b"a" * 1025)]
)
@pytest.mark.parametrize("member", [b'{"image":"aGk=","x":[', b'{"image":"'])
def test_megabytes_of_anything_cost_little(unit, member):
    body = member + unit * (2 * 2**20 // len(unit)) + b'"]}'
    tracemalloc.start()
    started = time.thread_time()
    try:
        with pytest.raises(ServiceError):
            parse(body)
        assert time.thread_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_decoding_an_image_takes_no_second_copy_of_it():
    image = bytes(6 * 2**20)
    body = b'{"image": "%b"}' % base64.b64encode(image)
    tracemalloc.start()
    try:
        assert parse(body) == (image, {})
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(image)
    finally:
        tracemalloc.stop()
