"""The service does what its OpenAPI document says: schemathesis, on a real server, over every route."""

import base64
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from model.detector import Detector
from tests.service import corpus
from tests.service.conftest import CLASSES, Live, serving

EXAMPLES = 10  # of each kind for each route


IMAGES = [corpus.sound(format) for format in corpus.FORMATS]


# That data which fit the schema are accepted is not asked: no schema says which bytes are an image.
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]


# In a form, a list of nothing is nothing, and a list of one is the one.
CHECKS_OF_FORMS_WITH_SHORT_LISTS = [check for check in CHECKS if check is not negative_data_rejection]


TIMEOUT_HEADER = "X-Request-Timeout-Ms"


schemathesis.openapi.media_type("image/*", st.sampled_from(IMAGES) | st.binary(max_size=60))


@pytest.fixture(scope="module")
def everything() -> Iterator[Live]:
    """The service with every other interface."""
    interfaces = {"deepstack": True, "huggingface": True, "open_inference": True}
    with serving(lambda _: Detector.random("LITE", seed=0, classes=CLASSES), **interfaces) as live:
        yield live


def checks_of(case: schemathesis.Case) -> list[schemathesis.checks.CheckFunction]:
    """What can be asked of the answer to ``case``."""
    fields = case.body.values() if case.media_type == "multipart/form-data" and isinstance(case.body, dict) else ()
    short = any(isinstance(value, list) and len(value) < 2 for value in fields)
    return CHECKS_OF_FORMS_WITH_SHORT_LISTS if short else CHECKS


def make_real(case: schemathesis.Case) -> None:
    """Put a real image and the served model's name in, where there is room: chance would not."""
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = "random"
    if isinstance(case.body, dict):
        for field in {"image", "inputs"} & case.body.keys():
            if case.media_type == "application/json" and isinstance(case.body[field], str):
                case.body[field] = base64.b64encode(IMAGES[0]).decode()
            elif case.media_type == "multipart/form-data":
                case.body[field] = IMAGES[1]


@pytest.mark.slow
def test_every_route_answers_as_its_document_says_and_never_with_5xx(everything: Live) -> None:
    document = schemathesis.openapi.from_url(f"{everything.url}/openapi.json")
    statuses: dict[str, Counter[int]] = {}
    for result in document.get_all_operations():
        operation = result.ok()
        statuses[operation.label] = Counter()
        kinds = [schemathesis.GenerationMode.POSITIVE]
        if operation.body or operation.query or operation.headers:  # else there is nothing to get wrong
            kinds.append(schemathesis.GenerationMode.NEGATIVE)
        for kind in kinds:
            _exchange(operation, kind, everything.url, statuses[operation.label])
    assert {"POST /detect", "POST /detect/batch", "POST /proposals", "POST /explain", "GET /model"} <= statuses.keys()
    assert len(statuses) >= 14
    for route in ("POST /detect", "POST /detect/batch", "POST /proposals", "GET /model", "GET /metrics"):
        assert statuses[route][200], f"{route} was never answered with 200: {statuses[route]}"
    assert everything.client.get("/readyz").json() == {"status": "ready"}


def _exchange(
    operation: schemathesis.schemas.APIOperation,
    kind: schemathesis.GenerationMode,
    url: str,
    statuses: Counter[int],
) -> None:
    """Send what fits the operation's schema, or does not, and hold each answer to the document."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=kind), real=st.booleans())
    def exchange(case: schemathesis.Case, real: bool) -> None:
        if real and kind is schemathesis.GenerationMode.POSITIVE:
            make_real(case)
        answer = case.call(base_url=url, timeout=60)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=checks_of(case))
        in_time = answer.status_code == 504 and TIMEOUT_HEADER.lower() in {name.lower() for name in case.headers or {}}
        assert answer.status_code < 500 or in_time, answer.text  # who allows a millisecond gets 504, as documented

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, about schemas of which it can make no negative
        exchange()
