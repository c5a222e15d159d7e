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


IMAGES = [corpus.intact(format) for format in corpus.FORMATS]


# Not that data which fit the schema are accepted: no schema describes which bytes are an image.
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]


# In a form, an empty list is an absent field, and a list of one is its value.
CHECKS_OF_FORMS_WITH_SHORT_LISTS = [check for check in CHECKS if check is not negative_data_rejection]


TIMEOUT_HEADER = "X-Request-Timeout-Ms"


schemathesis.openapi.media_type("image/*", st.sampled_from(IMAGES) | st.binary(max_size=60))


@pytest.fixture(scope="module")
def full_service() -> Iterator[Live]:
    """Serve with every compatible interface switched on."""
    interfaces = {"deepstack": True, "huggingface": True, "open_inference": True}
    with serving(lambda _: Detector.random("LITE", seed=0, classes=CLASSES), **interfaces) as live:
        yield live


def checks_of(case: schemathesis.Case) -> list[schemathesis.checks.CheckFunction]:
    """Return the checks that apply to the response to ``case``."""
    fields = case.body.values() if case.media_type == "multipart/form-data" and isinstance(case.body, dict) else ()
    short = any(isinstance(value, list) and len(value) < 2 for value in fields)
    return CHECKS_OF_FORMS_WITH_SHORT_LISTS if short else CHECKS


def make_real(case: schemathesis.Case) -> None:
    """Put a real image and the served model's name into ``case``: random data never hold them."""
    if "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = "random"
    if isinstance(case.body, dict):
        for field in {"image", "inputs"} & case.body.keys():
            if case.media_type == "application/json" and isinstance(case.body[field], str):
                case.body[field] = base64.b64encode(IMAGES[0]).decode()
            elif case.media_type == "multipart/form-data":
                case.body[field] = IMAGES[1]


@pytest.mark.slow
def test_every_route_answers_as_its_document_says_and_never_with_5xx(full_service: Live) -> None:
    document = schemathesis.openapi.from_url(f"{full_service.url}/openapi.json")
    statuses: dict[str, Counter[int]] = {}
    for result in document.get_all_operations():
        operation = result.ok()
        statuses[operation.label] = Counter()
        kinds = [schemathesis.GenerationMode.POSITIVE]
        if operation.body or operation.query or operation.headers:  # otherwise no request can be wrong
            kinds.append(schemathesis.GenerationMode.NEGATIVE)
        for kind in kinds:
            _exchange(operation, kind, full_service.url, statuses[operation.label])
    assert {"POST /detect", "POST /detect/batch", "POST /proposals", "POST /explain", "GET /model"} <= statuses.keys()
    assert len(statuses) >= 14
    for route in ("POST /detect", "POST /detect/batch", "POST /proposals", "GET /model", "GET /metrics"):
        assert statuses[route][200], f"{route} was never answered with 200: {statuses[route]}"
    assert full_service.client.get("/readyz").json() == {"status": "ready"}


def _exchange(
    operation: schemathesis.schemas.APIOperation,
    kind: schemathesis.GenerationMode,
    url: str,
    statuses: Counter[int],
) -> None:
    """Send requests that fit the operation's schema, or do not, and check each response against the document."""

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
        response = case.call(base_url=url, timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=checks_of(case))
        in_time = response.status_code == 504 and TIMEOUT_HEADER.lower() in {
            name.lower() for name in case.headers or {}
        }
        assert response.status_code < 500 or in_time, response.text  # who allows a millisecond gets 504, as documented

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schemathesis warns of schemas that every request fits
        exchange()
