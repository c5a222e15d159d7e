"""Options: merged, bounded, and refused by name."""

import base64
import contextlib
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.body import parse_body
from service.api.explanations import ExplainOptions, ExplainQuery
from service.api.options import DetectionOptions, ProposalOptions, check_query, check_regions, merge_into
from service.errors import BadOption, ServiceError
from service.settings import load_settings
from tests.service.conftest import FaultyDetector
from tests.service.exchange import check_problem

pytestmark = pytest.mark.usefixtures("next_request_is_served")


INFO = FaultyDetector().info
SETTINGS = load_settings()
LOW = {"score_threshold": "0.01"}  # random weights score all classes alike: let some through


def test_options_beside_the_image_win_over_the_query(service, cat_jpeg):
    response = service.client.post(
        "/detect", params={"max_detections": 5} | LOW, files={"image": cat_jpeg}, data={"max_detections": "2"}
    )
    assert len(response.json()["boxes"]) == 2


@pytest.mark.parametrize(
    ("option", "value", "phrase"),
    [
        ("score_threshold", "1.5", "the range is 0 to 1"),
        ("score_threshold", "-0.1", "greater than or equal to 0"),
        ("score_threshold", "nan", "finite"),
        ("score_threshold", "high", "number"),
        ("max_detections", "0", "greater than or equal to 1"),
        ("max_detections", "1001", "less than or equal to 1000"),
        ("nms_threshold", "7", "less than or equal to 1"),
        ("box_format", "yxyx", "'xyxy', 'xywh' or 'cxcywh'"),
        ("normalized", "perhaps", "boolean"),
        ("proposals", "-1", "greater than or equal to 0"),
        ("proposals", "9999", "that this detector proposes"),
        ("classes", "unicorn", "'unicorn' is not a class"),
        ("classes", "0", "ids are 1 to 3"),
        ("classes", "99", "ids are 1 to 3"),
        ("treshold", "0.5", "no such option"),
    ],
)
def test_invalid_options_are_422_in_query_form_and_json(service, encoded, option, value, phrase):
    by_query = service.detect(encoded(), params={option: value})
    by_form = service.client.post("/detect", files={"image": encoded()}, data={option: value})
    by_json = service.client.post("/detect", json={"image": base64.b64encode(encoded()).decode(), option: value})
    for response in (by_query, by_form, by_json):
        problem = check_problem(response, 422, option, phrase)
        assert [error["name"] for error in problem["errors"]] == [option]


def test_two_wrong_options_are_both_named(service, encoded):
    problem = check_problem(service.detect(encoded(), params={"score_threshold": 2, "max_detections": 0}), 422)
    assert {error["name"] for error in problem["errors"]} == {"score_threshold", "max_detections"}


@pytest.mark.parametrize("value", ["0", "-5", "soon", "99999999999"])
def test_an_invalid_deadline_is_422(service, encoded, value):
    check_problem(
        service.detect(encoded(), headers={"X-Request-Timeout-Ms": value}), 422, "X-Request-Timeout-Ms", "1 to 3600000"
    )


def options_of(kind, document: bytes):
    """Parse, merge and resolve the options of a JSON body, as a route does."""
    query = ExplainQuery() if kind is ExplainOptions else kind()
    options = merge_into(kind, query, parse_body(document, "application/json")[1])
    if isinstance(options, DetectionOptions):
        options.resolve(INFO, SETTINGS)
        check_regions(options.regions or (), 640, 480)
    if isinstance(options, ProposalOptions):
        options.check_level(INFO)
    if isinstance(options, ExplainOptions):
        options.class_names(INFO)
        options.check_boxes(640, 480)


LISTS = [
    (DetectionOptions, "classes"),
    (DetectionOptions, "regions"),
    (ProposalOptions, "limit"),
    (ExplainOptions, "boxes"),
    (ExplainOptions, "labels"),
    (ExplainOptions, "unknown"),
]


@pytest.mark.parametrize(("kind", "member"), LISTS)
@pytest.mark.parametrize("item", ["null", '"zz"', "[]", "[null,null,null,null]", "[1e308,0,0,1e308]"])
def test_lists_of_anything_cost_little(kind, member, item):
    for most in (60_000 // (len(item) + 1), 1_000, 100):  # as many as fit into 64 KiB; as many as the limits allow
        members = f'"image":"aGk=","boxes":[[0,0,9,9]],"{member}":[{",".join([item] * most)}]'
        started = time.thread_time()
        with contextlib.suppress(ServiceError):
            options_of(kind, f"{{{members}}}".encode())
        assert time.thread_time() - started < 1


def test_of_many_problems_ten_are_named_and_all_are_counted():
    members = ",".join(f'"{number}":1' for number in range(5_000))
    with pytest.raises(BadOption) as refused:
        options_of(DetectionOptions, f'{{"image":"aGk=","max_detections":0,{members}}}'.encode())
    assert refused.value.detail.endswith("and 4991 more.")
    assert len(refused.value.fields) == 10
    assert refused.value.fields[0]["name"] == "max_detections"


def test_the_words_of_a_client_are_cut_in_an_error():
    members = ",".join(f'"{number}{"x" * 5000}":1' for number in range(12))
    with pytest.raises(BadOption) as refused:
        options_of(DetectionOptions, f'{{"image":"aGk=",{members}}}'.encode())
    assert len(refused.value.detail) < 2_000
    assert all(len(field["name"]) <= 60 for field in refused.value.fields)


@pytest.mark.parametrize(
    "query",
    ["&".join(map(str, range(11_000))), "&" * 60_000, "a=&" * 20_000, "&".join(f"{n}=" for n in range(65))],
)
def test_a_query_with_too_many_options_is_refused_before_it_is_read(service, encoded, query):
    started = time.thread_time()
    with pytest.raises(BadOption):
        check_query(query.encode())
    assert time.thread_time() - started < 0.5
    problem = check_problem(service.client.post(f"/detect?{query}", content=encoded()), 422, "query: there are")
    assert len(problem["errors"]) == 1


def test_a_query_may_name_a_thousand_classes():
    check_query(b"&".join([b"classes=cat"] * 1000 + [b"score_threshold=0.5"]))


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [1e308, -1e308, 1e9, 5e-324, 10**18, "[[0,0,9,9]]", "[", "null", "9" * 5000, "nan", "-inf", "1e400"]
    )
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda values: st.lists(values, max_size=5) | st.dictionaries(st.text(max_size=3), values, max_size=2),
    max_leaves=8,
)
_NAMES = sorted({name for kind in (DetectionOptions, ProposalOptions, ExplainOptions) for name in kind.model_fields})
_boxes = st.lists(st.lists(st.sampled_from([0, 1, -1, 1e-300, 1e8, 1e9, 1e38, 1e308, -1e308]), min_size=4, max_size=4))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([DetectionOptions, ProposalOptions, ExplainOptions]),
    st.dictionaries(st.sampled_from(_NAMES), _json | _boxes, max_size=3),
    _boxes,
    st.sampled_from(["xyxy", "xywh", "cxcywh"]),
    st.booleans(),
)
def test_no_json_option_raises_anything_but_the_services_errors(kind, members, boxes, box_format, normalized):
    frame = {"boxes": boxes, "box_format": box_format, "normalized": normalized} if kind is ExplainOptions else {}
    with contextlib.suppress(ServiceError):
        options_of(kind, orjson.dumps({"image": "aGk="} | frame | members))
