"""The short form of `benchmarks.serving.hostile`, against a service in this process."""

import dataclasses
import os

import pytest

from benchmarks.lib.hostile_case import Case
from benchmarks.lib.hostile_requests import KINDS, cases
from benchmarks.lib.raw_http import Answer, Exchange
from benchmarks.serving.hostile import Hostile, Limits, broken_answers
from tests.service.conftest import FaultyDetector, serving
from tests.service.exchange import address

# A slow and busy machine keeps these; the service without its limits does not.
LIMITS = Limits(livez_s=4, ordinary_s=20, memory_mib=1024)


class Device(FaultyDetector):
    """Answers as the model whose name the cases use."""

    @property
    def info(self):
        return dataclasses.replace(super().info, name="lite-voc20")


def test_no_short_case_breaks_a_limit() -> None:
    settings = {"deepstack": True, "huggingface": True, "open_inference": True}
    with serving(lambda _: Device(), **settings) as live:
        hostile = Hostile(address(live), os.getpid(), LIMITS, processor=False)
        rows = list(hostile.run(cases(short=True)))
    assert {row.name: row.broken for row in rows if row.broken} == {}
    assert {row.kind for row in rows} >= {"options", "headers", "http", "compat", "multipart", "exchange"}


def test_every_case_has_a_name_of_its_own() -> None:
    names = [(case.kind, case.name) for case in cases()]
    assert len(set(names)) == len(names)
    assert {kind for kind, _ in names} == set(KINDS)


@pytest.mark.parametrize(
    ("exchange", "wrong"),
    [
        (Exchange(answers=[Answer(200, {}, b"{}")], closed=0.0), []),
        (Exchange(answers=[Answer(500, {"content-type": "application/problem+json"})], closed=0.0), ["status 500"]),
        (
            Exchange(answers=[Answer(400, {"content-type": "text/plain; charset=utf-8"})], closed=0.0),
            ["status 400 as plain text"],
        ),
        (Exchange(closed=0.0), ["no answer"]),
        (Exchange(answers=[Answer(200, {}, b"{}")]), ["the connection was left open"]),
        (Exchange(answers=[Answer(200, {}, b"{}")], closed=0.0, malformed="no response: 'x'"), ["no response: 'x'"]),
    ],
)
def test_what_is_wrong_with_answers_is_named(exchange: Exchange, wrong: list[str]) -> None:
    assert broken_answers(Case("http", "a case", lambda number: []), [exchange]) == wrong


def test_a_case_may_demand_more() -> None:
    case = Case("http", "a case", lambda number: [], answers=2, statuses=frozenset({200}), closed_within=1.0)
    late = Exchange(answers=[Answer(422, {"content-type": "application/problem+json"})], closed=1.5)
    assert broken_answers(case, [late]) == ["status 422", "1 answers of 2", "not closed within 1 s"]
